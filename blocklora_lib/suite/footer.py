"""What a figure or a table says of itself: on what it rests, and what its numbers are not."""

from __future__ import annotations

from ..claims.verdict import BASES, Basis
from ..core.schema import UnknownName
from ..runs.profile import Profile


def profile_note(profile: Profile) -> str | None:
    """Return the line that every figure of this profile carries; None if its numbers may stand
    beside published ones.
    """
    if profile.published:
        return None
    name, pretrained = profile.backbone.name, profile.backbone.pretrained
    known = {
        "bundled": f"a small CLIP ({name}) on small images",
        "none": f"{name} with random weights",
    }
    return f"{profile.name} profile: {known.get(pretrained, name)}; not the paper's numbers"


def footer(basis: Basis, profile: Profile) -> str | None:
    """Return the line below a figure that rests on `basis`: what its numbers are, and are not."""
    if basis not in BASES:
        raise UnknownName("basis of a figure", basis, BASES)
    return profile_note(profile) if basis == "measured" else f"rests on {BASES[basis][1]}"
