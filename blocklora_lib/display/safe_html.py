"""HTML of strangers, read as browsers read it and written anew: what is not listed is left out."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from bleach import html5lib_shim
from bleach.css_sanitizer import CSSSanitizer
from bleach.sanitizer import Cleaner

# what formulas are made of; none of these loads, links or runs anything
MATHML = frozenset(
    "math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub "
    "msubsup msup mtable mtd mtext mtr munder munderover mmultiscripts mprescripts none".split()
)
MATHML_ATTRIBUTES = frozenset(
    "accent accentunder align columnalign columnlines columnspacing depth display displaystyle "
    "fence form height lspace mathcolor mathbackground mathsize mathvariant maxsize minsize "
    "movablelimits notation rowlines rowspacing rspace scriptlevel separator side stretchy "
    "symmetric linethickness voffset width xmlns".split()
)
_TAGS = frozenset(
    "a b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 "
    "h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup "
    "table tbody td tfoot th thead tr u ul var".split()
)
_ATTRIBUTES = frozenset("alt align class colspan dir height lang rowspan scope width".split())
_STYLES = (
    "background-color color font-family font-size font-style font-weight max-width text-align "
    "text-decoration vertical-align white-space width"
).split()
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*\Z")
# a page, an address, a place here, a file here; not //host/file, which Windows asks for a password
_LINK = re.compile(r"https?://|mailto:|#|(?![/\\])[^:\\]*\Z")
# no url(), no expression(), no comment or escape that hides one
_STYLE = re.compile(r"""(?:rgba?\([\d\s.,%]*\)|[\w\s:;.,%#'"!+-])*\Z""")
_UNSHOWN = re.compile(r"<(script|style|template|iframe|svg)\b.*?(</\1\s*>|\Z)", re.I | re.S)
# html5lib looks through all open elements for each tag, and through all attributes for each
_OPEN, _OF_A_TAG, _MARKS = 200, 100, 300_000


def safe_html(text: str) -> str:
    """Return HTML without scripts, forms, frames, styles of the page, ids and addresses that load.

    Formulas, tables, pictures that are in the text itself and links to pages stay. Whatever is open
    at the end is closed, so that it cannot leave the element that it is put into. ValueError for
    what would take long to read: elements in one another, attributes, tags, by the thousand.
    """
    text = _UNSHOWN.sub("", text)
    if (marks := text.count("<") + text.count("&")) > _MARKS:
        raise ValueError(f"it holds {marks:,} tags and references, a page at most {_MARKS:,}")
    return str(_cleaner().clean(text))


class _Tokens(html5lib_shim.BleachHTMLTokenizer):
    """Ends at what takes html5lib a time that grows with its square."""

    def attributeNameState(self) -> Any:
        if len(self.currentToken["data"]) > _OF_A_TAG:
            raise ValueError(f"a tag has more than {_OF_A_TAG} attributes")
        return super().attributeNameState()

    def emitCurrentToken(self) -> None:
        if len(self.parser.tree.openElements) > _OPEN:
            raise ValueError(f"more than {_OPEN} elements stand in one another")
        super().emitCurrentToken()


class _Parser(html5lib_shim.BleachHTMLParser):
    def reset(self) -> None:  # as soon as it has a tokenizer
        self.tokenizer.__class__ = _Tokens
        super().reset()


@cache
def _cleaner() -> Cleaner:
    cleaner = Cleaner(
        tags=_TAGS | MATHML,
        attributes=_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        strip_comments=True,
        css_sanitizer=CSSSanitizer(allowed_css_properties=_STYLES),
    )
    cleaner.parser.__class__ = _Parser
    return cleaner


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag in MATHML:
        return name in MATHML_ATTRIBUTES and "(" not in value
    if name == "src":
        return tag == "img" and bool(_IMAGE.match(value))
    if name == "href":
        return tag == "a" and bool(_LINK.match(value.strip()))
    return name in _ATTRIBUTES or (name == "style" and bool(_STYLE.match(value)))
