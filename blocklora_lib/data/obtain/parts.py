"""The files that a set needs, each with the sources that may be asked for it."""

from __future__ import annotations

from typing import NamedTuple

from ..manifest import Manifest
from ..sources import Archive
from .fetch import is_direct, known_hash


class Part(NamedTuple):
    """One file that a set needs: its sources in turn, those that are gone, those for a browser."""

    sources: tuple[Archive, ...]
    dead: tuple[Archive, ...]
    manual: tuple[Archive, ...]


def parts(manifest: Manifest) -> list[Part]:
    """The files that the set needs, each with its mirrors, which name the archive they replace.

    A mirror of a file whose checksum is known is held against one, its own or, where it has the
    same name, that of the file; where neither can be, it is left to a person with a browser.
    """
    groups: dict[int, list[Archive]] = {}
    for number, archive in enumerate(manifest.archives):
        place = number if archive.mirror_of is None else archive.mirror_of
        groups.setdefault(place, []).append(_vouched_for(archive, manifest.archives[place]))
    found = []
    for group in groups.values():
        dead = tuple(a for a in group if a.dead)
        manual = tuple(a for a in group if not a.dead and (a.manual or not is_direct(a.url)))
        sources = tuple(a for a in group if a not in dead and a not in manual)
        found.append(Part(sources, dead, manual))
    return found


def _vouched_for(archive: Archive, first: Archive) -> Archive:
    if known_hash(archive.sha256, archive.md5) or not known_hash(first.sha256, first.md5):
        return archive
    if archive.file_name == first.file_name:
        return archive.model_copy(update={"sha256": first.sha256, "md5": first.md5})
    return archive.model_copy(update={"manual": True})
