"""A folder of one's own images in place of a profile's sets. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..core.files import user_path
from ..data.manifest import Manifest
from ..data.user_dataset import repeated, write_own
from ..data.user_folder import look
from .profile import Profile

if TYPE_CHECKING:
    from .workbench import Workbench


class OwnImages(NamedTuple):
    """One's own images as a set: a profile of it alone, where its manifest and its folder lie.

    notes: what of the folder is left out, taken otherwise than one may think, for both training and
    test, or for two classes.
    """

    profile: Profile
    manifest: Manifest
    manifests: Path
    root: Path
    notes: tuple[str, ...]

    def on(self, bench: Workbench) -> Workbench:
        """The bench on which runs find these images."""
        return replace(bench, manifests=self.manifests, root=self.root)


def refuse_within(results: Path, images: Path) -> None:
    """ValueError for results in the folder of images, where they would be taken for a class."""
    if results.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"results in {results} would lie among the images of {images} and be taken for a "
            "class; give a folder beside it (--results)"
        )


def own_images(
    profile: Profile,
    folder: Path | str,
    results: Path,
    image_loading: Literal["upright", "as_clip"] = "upright",
) -> OwnImages:
    """Write the manifest of a folder to `results`/manifests; errors as `user_dataset.own_manifest`.

    The profile has this set in place of its own. ValueError: as `refuse_within`.
    """
    place = user_path(folder).resolve()
    refuse_within(results, place)
    manifest = write_own(place, results / "manifests", image_loading=image_loading)
    alone = {"source": None, "variants": (), "targets": (manifest.name,)}
    return OwnImages(
        profile.model_copy(update=alone),
        manifest,
        results / "manifests",
        place.parent,
        (*look(place).notes, *repeated(manifest, place)),
    )
