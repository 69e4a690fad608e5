"""The words of the suite: what a finding amounts to, and on what it rests.

Claims that others make and checks that a notebook makes itself speak the same words, and no other
module has any. 'Confirmed' alone is for arithmetic and for the published checkpoint; whatever rests
on less says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.schema import UnknownName
from ..runs.profile import Profile

Basis = Literal[
    "arithmetic", "measured", "bundled", "modelled", "published", "constructed", "nothing"
]
Verdict = str

# how a verdict names what it rests on, and that in full; 'measured' depends on the profile, and
# 'bundled' is PocketCLIP, whatever the profile
BASES: dict[Basis, tuple[str, str]] = {
    "arithmetic": ("", "arithmetic and counts"),
    "measured": (" on {place} only", "runs and measurements of this profile"),
    "bundled": (" on pocket only", "the small CLIP that the suite ships, in every profile"),
    "modelled": (" by a model", "a model, held against a measurement"),
    "published": (" by a model", "a model of published numbers"),
    "constructed": (" on a constructed task", "a constructed task, without a backbone"),
    "nothing": ("", "nothing yet"),
}
CONFIRMED, CONTRADICTED, OPEN, NOT_RUN = "confirmed", "contradicted", "not resolved", "not run"
STEMS = (CONFIRMED, CONTRADICTED, OPEN, NOT_RUN)
MEANINGS = {
    CONFIRMED: "it holds by arithmetic and counting, or by runs of the published checkpoint",
    f"{CONFIRMED} by a model": "a model says so, which is held against measurements or published "
    "numbers",
    f"{CONFIRMED} on a constructed task": "it holds on a task that was made for the question",
    f"{CONFIRMED} on pocket only": "it holds in runs or timings of a small CLIP, which say how the "
    "method behaves, and no more",
    CONTRADICTED: "the opposite is shown; by what, the same words say",
    OPEN: "there are measurements, and they allow both answers",
    NOT_RUN: "there is no evidence yet; the sentence says what would make it",
}


@dataclass(frozen=True)
class Finding:
    """What a judge, or a check, found. holds: None where what was looked at allows both answers.

    evidence: one or two sentences with the numbers. smallest: the smallest effect that a
    statistical finding could have seen, in words. but: what a reader of the verdict has to know at
    once, in a few words.
    """

    holds: bool | None
    evidence: str
    rests_on: Basis = "measured"
    smallest: str = ""
    but: str = ""

    @property
    def told(self) -> str:
        """The evidence, with the smallest visible effect."""
        seen = f" Smallest visible effect: {self.smallest}." if self.smallest else ""
        return f"{self.evidence}{seen}"


def weighed(finding: Finding, profile: Profile) -> Finding:
    """Return the finding, or that there is none where it rests on a model of random weights."""
    if finding.rests_on != "measured" or profile.backbone.pretrained != "none":
        return finding
    told = (
        f"The weights of profile {profile.name} are random (backbone.pretrained: none), so that "
        "its runs and timings decide nothing; make them with a trained model, as by `blocklora "
        "reproduce --profile pocket`."
    )
    return Finding(None, told, "nothing")


def verdict(finding: Finding, profile: Profile) -> Verdict:
    """Return what the finding amounts to in a profile's results."""
    if finding.rests_on not in BASES:
        raise UnknownName("basis of a finding", finding.rests_on, BASES)
    finding, bundled = weighed(finding, profile), profile.backbone.pretrained == "bundled"
    if finding.rests_on == "nothing":
        return NOT_RUN
    if finding.holds is None:
        return OPEN
    stem = CONFIRMED if finding.holds else CONTRADICTED
    if finding.rests_on == "measured" and profile.published and not bundled:
        return stem
    place = "pocket" if bundled else profile.name
    return stem + BASES[finding.rests_on][0].format(place=place)


def stem(text: str) -> str:
    """Return which of STEMS a verdict begins with; ValueError for another word."""
    for known in STEMS:
        if f"{text} ".startswith(f"{known} "):
            return known
    raise ValueError(f"{text!r} is no verdict; those known begin with {', '.join(STEMS)}")


def tone(text: str) -> Literal["good", "bad", "none"]:
    """Return how a verdict is coloured."""
    tones: dict[str, Literal["good", "bad"]] = {CONFIRMED: "good", CONTRADICTED: "bad"}
    return tones.get(stem(text), "none")


def counted(verdicts: list[Verdict]) -> str:
    """Write how many there are of each: '7 confirmed, 2 not run'."""
    order = sorted(set(verdicts), key=lambda text: (STEMS.index(stem(text)), text))
    return ", ".join(f"{verdicts.count(text)} {text}" for text in order)
