"""Mathematics of pages and docstrings as MathML, which browsers draw: no script, no network.

Pages have TeX between dollar signs. Docstrings are written to be read in an editor: `A_s`, `ΔWᵀ`,
indented formulas, columns of names and what they mean. All of it is drawn as what it is.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as etree

from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString

from blocklora_lib.display.mathml import mathml

TEX = r"(?<![\\$\w])\$(?=[^\s$])([^$]*?[^\s$\\])\$(?![\w$])"
# one letter with an index, as A_s, B_i, Σ_i, d_in; never a part of a longer name
INDEXED = r"(?<![A-Za-z0-9`./_])([A-Za-zΔΣ])_([a-z]{1,3}|[0-9ijn])(?![\w(`])"
FORMULA = re.compile(r"[ΔΣᵀ√≤‖]|\b[A-Z]_[a-z]\b")
CODE = re.compile(r"[\w.]{3,}\(|['\"`#>]|\bimport\b|^\s*[-*|]|\{")
COLUMNS = re.compile(r"\S {2,}\S")
SYMBOLS = {
    "ᵀ": r"^{\top}", "Δ": r"\Delta ", "Σ": r"\sum ", "·": r"\cdot ", "×": r"\times ",
    "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "‖": r"\Vert ", "²": "^2", "⁻¹": "^{-1}",
    "∈": r"\in ", "≈": r"\approx ", "→": r"\to ", "->": r"\to ", "↦": r"\mapsto ",
    "…": r"\dots ", "..": r"\dots ", "−": "-", "ε": r"\epsilon ", "σ": r"\sigma ",
    "δ": r"\delta ", "η": r"\eta ", "λ": r"\lambda ", "∞": r"\infty ", "ℝ": r"\mathbb{R} ",
}  # fmt: skip


def tex_of(line: str) -> str:
    """Return TeX of a formula as it is written in plain text, words in it upright."""
    parts = []
    for word in re.split(r"( {2,}|[A-Za-z]{2,}(?![_\w]))", line.strip()):
        if re.fullmatch(r" {2,}", word):
            parts.append(r"\qquad ")
        elif re.fullmatch(r"[A-Za-z]{2,}", word):
            known = word in ("sqrt", "log", "exp", "min", "max", "tr", "det")
            upper = word.isupper() or (len(word) == 2 and word[0].isupper())  # a product: AB, BA
            parts.append(
                f"\\{word} " if known and word != "tr" else word if upper else rf"\text{{{word}}}"
            )
        else:
            word = re.sub(r"_([A-Za-z0-9]+)", r"_{\1}", word)
            for symbol, tex in SYMBOLS.items():
                word = word.replace(symbol, tex)
            parts.append(word.replace("%", r"\%").replace("&", r"\&"))
    return "".join(parts)


class Tex(InlineProcessor):
    """$formula$."""

    def handleMatch(self, m, data):
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


class Indexed(InlineProcessor):
    """A letter with an index."""

    def handleMatch(self, m, data):
        letter = SYMBOLS.get(m[1], m[1])
        index = m[2] if len(m[2]) == 1 else rf"\text{{{m[2]}}}"
        return self.md.htmlStash.store(mathml(rf"{letter}_{{{index}}}")), m.start(0), m.end(0)


class Laid(BlockProcessor):
    """Blocks that are laid out by hand: $$formulas$$, indented formulas, columns."""

    def test(self, parent, block):
        lines = block.splitlines()
        self.display = block.startswith("$$") and block.rstrip().endswith("$$")
        indented = all(line.startswith("    ") for line in lines)
        self.formula = indented and bool(FORMULA.search(block)) and not CODE.search(block)
        self.columns = not indented and sum(bool(COLUMNS.search(line)) for line in lines) > 1
        return (
            self.display
            or self.formula
            or (self.columns and not block.lstrip().startswith(("|", "```")))
        )

    def run(self, parent, blocks):
        block = blocks.pop(0)
        if self.columns:
            pre = etree.SubElement(parent, "pre", {"class": "columns"})
            pre.text = AtomicString(block)
            return
        lines = (
            [block.strip().strip("$")]
            if self.display
            else [tex_of(line) for line in block.splitlines()]
        )
        for line in lines:
            drawn = self.parser.md.htmlStash.store(mathml(line, "block"))
            etree.SubElement(parent, "p").text = drawn


class Mathematics(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.parser.blockprocessors.register(Laid(md.parser), "laid", 95)
        md.inlinePatterns.register(Tex(TEX, md), "tex", 185)
        md.inlinePatterns.register(Indexed(INDEXED, md), "indexed", 170)
