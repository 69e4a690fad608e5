"""The text of a record: JSON whose last entry is the SHA-256 of all that stands before it. No
torch.

The checksum is of the text, not of the parsed values: so it also notices a key that stands twice,
costs next to nothing for a record of ten thousand losses, and needs no rule for how a number is
spelled. It is against accidents (a bad disk, a hand in the file, a copy that was cut short), not
against forgers.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pydantic_core import from_json

from ..core.json_data import check_size

_SEAL = re.compile(r',\n "checksum": "([0-9a-f]{64})"\n}\s*\Z')
_SEAL_LENGTH = 100  # characters; the seal is searched for at the end of the text only


def seal(facts: dict[str, Any]) -> str:
    """Return the file's text: the facts, which are not empty, and their checksum."""
    body = json.dumps(facts, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{body},\n "checksum": "{_digest(body)}"\n}}\n'


def is_whole(text: str) -> bool:
    """Whether the text ends in the checksum of what stands before it."""
    found = _SEAL.search(text, max(0, len(text) - _SEAL_LENGTH))
    return found is not None and _digest(text[: found.start()]) == found[1]


def unseal(text: str) -> dict[str, Any]:
    """Return the facts; ValueError where the text is not what was written, or a number is not
    finite.
    """
    if not is_whole(text):
        cut = _SEAL.search(text, max(0, len(text) - _SEAL_LENGTH)) is None
        raise ValueError(
            "it is cut short or has no checksum"
            if cut
            else "its checksum is of another content: the file was changed after it was written"
        )
    check_size(text)
    facts = from_json(text, allow_inf_nan=False)
    del facts["checksum"]
    return facts


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
