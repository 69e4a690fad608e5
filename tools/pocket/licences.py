"""Licence texts and credits of the bundled images: pocket/licences/ and pocket/ATTRIBUTION.md."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from folder import CREDIT
from letters import LETTER_PACKAGES

PREAMBLE = (
    "# Where the pocket images come from\n\nWritten by tools/pocket/licences.py from "
    "data_manifests/. Every image was resized to 64 x 64 and encoded as WebP. A set\nunder a "
    "share-alike licence or the GPL is a separate work beside the MIT-licensed code. Licence "
    "texts: `licences/`.\n"
)


def write_licences(cache: Path, manifests: Path, pocket: Path) -> None:
    """Copy the licence texts that manifests name, Debian's copyright files; write the credits."""
    texts = cache / "npm/spdx-license-list/package/licenses"
    folder = pocket / "licences"
    (folder / "debian").mkdir(parents=True, exist_ok=True)
    sets = [yaml.safe_load(path.read_text()) for path in sorted(manifests.glob("*.yaml"))]
    sets = [manifest for manifest in sets if manifest["kind"] == "bundle"]
    sources = [source for manifest in sets for source in manifest["sources"]]
    for licence in {source["licence"] for source in sources} | {"OFL-1.1"}:
        if (texts / f"{licence}.json").exists():
            text = json.loads((texts / f"{licence}.json").read_text())["licenseText"]
            stripped = [line.rstrip() for line in text.strip().splitlines()]
            (folder / f"{licence}.txt").write_text("\n".join(stripped) + "\n")
    copied = cache / "deb/wordnet-base/usr/share/doc/wordnet-base/copyright"  # SPDX has no such
    (folder / "LicenseRef-WordNet-3.0.txt").write_text(copied.read_text())
    packages = {source["package"] for source in sources}
    debian = {name.removeprefix("debian:") for name in packages if name.startswith("debian:")}
    for package in sorted(debian - {"fonts-*"} | {f"fonts-{name}" for name in LETTER_PACKAGES}):
        copyright_file = cache / "deb" / package / "usr/share/doc" / package / "copyright"
        (folder / "debian" / f"{package}.txt").write_text(
            copyright_file.read_text(errors="replace")
        )
    lines = [PREAMBLE]
    for manifest in sets:
        lines += [f"## {manifest['title']} (`{manifest['file']}`): {manifest['licence']}", ""]
        lines += [manifest["notes"], ""] if manifest["notes"] else []
        for source in manifest["sources"]:
            link = f" <{source['url']}>" if source.get("url") else ""
            lines.append(
                f"- {source['package']}, {source['licence']}: {source['attribution']}{link}"
            )
        lines.append("")
    (pocket / "ATTRIBUTION.md").write_text("\n".join([*lines, CREDIT]))
