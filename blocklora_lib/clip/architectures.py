"""The sizes of CLIP models with transformer towers, by open_clip's own JSON configs. No torch.

A config is data: nothing of open_clip is imported to read one. What the closed forms of cost need
is here: width E, layers, heads H, width M of the MLP, tokens L of a sequence, width e of the shared
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..adapters.config import AdapterConfig
from ..core.json_data import read_json
from ..core.paths import POCKET_MODEL, bundled
from ..core.schema import UnknownName
from ..weights.spec import BUNDLED

PRESETS = ("PocketCLIP", "ViT-B-32", "ViT-B-16", "ViT-L-14")


class NoClosedForm(ValueError):
    """A model whose towers are no plain transformers: it can be trained, but not be priced."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"architecture {name} sets {what}, for which there is no closed form here; "
            f"use a CLIP with two plain transformer towers, such as {', '.join(PRESETS[1:])}"
        )


@dataclass(frozen=True)
class Tower:
    """One transformer tower. `inputs`: numbers of one patch (3 p²), or words of the vocabulary."""

    kind: Literal["vision", "text"]
    width: int  # E
    layers: int
    heads: int  # H
    mlp_width: int  # M
    tokens: int  # L, the class token or the padding included
    embed_dim: int  # e
    inputs: int
    quick_gelu: bool = False

    @property
    def block_weights(self) -> int:
        """Numbers of a block: q, k, v, o (4 E² + 4 E), MLP (2 E M + M + E), two norms (4 E)."""
        e, m = self.width, self.mlp_width
        return 4 * e * e + 4 * e + 2 * e * m + m + e + 4 * e

    @property
    def embedding_weights(self) -> int:
        """Patches or words, positions, a vision tower's class token and first norm too (3 E)."""
        return (self.inputs + self.tokens + 3 * (self.kind == "vision")) * self.width

    @property
    def weights(self) -> int:
        """Frozen numbers of the tower, with its last norm and its projection to the embedding."""
        head = 2 * self.width + self.width * self.embed_dim
        return self.embedding_weights + self.layers * self.block_weights + head

    def adapted_layers(self, config: AdapterConfig) -> tuple[int, ...]:
        """Depths, counted from 0, that `config` adapts in this tower; none if it leaves it out."""
        if self.kind not in config.towers:
            return ()
        if config.layers == "all":
            return tuple(range(self.layers))
        for depth in config.layers:
            if not -self.layers <= depth < self.layers:
                raise ValueError(
                    f"layers names depth {depth}, "
                    f"but the {self.kind} tower has {self.layers} layers; use "
                    f'depths from {-self.layers} to {self.layers - 1}, or layers="all"'
                )
        return tuple(sorted({depth % self.layers for depth in config.layers}))


@dataclass(frozen=True)
class ClipArchitecture:
    """An image tower and a text tower that meet in an embedding of width e."""

    name: str
    vision: Tower
    text: Tower

    @property
    def towers(self) -> tuple[Tower, Tower]:
        return self.vision, self.text

    @property
    def weights(self) -> int:
        """Frozen numbers, the one logit scale included."""
        return self.vision.weights + self.text.weights + 1

    def sites(self, config: AdapterConfig) -> tuple[tuple[str, int, str, int, int], ...]:
        """Return (tower, layer, target, d_in, d_out) of each adapted projection."""
        return tuple(
            (tower.kind, layer, target, tower.width, tower.width)
            for tower in self.towers
            for layer in tower.adapted_layers(config)
            for target in config.targets
        )


@cache
def clip_architecture(name: str) -> ClipArchitecture:
    """Return the sizes of PocketCLIP or of any open_clip CLIP with two plain transformer towers."""
    return from_config(name, read_config(name))


def read_config(name: str) -> dict[str, Any]:
    """Return open_clip's config of a model (the project's own for its models) as plain data."""
    if name in BUNDLED:
        path = bundled(POCKET_MODEL / f"{BUNDLED[name]}.json")
    else:
        spec = find_spec("open_clip")  # finds the folder; imports nothing
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                "the configs of CLIP models are open_clip's; install open_clip_torch",
                name="open_clip",
            )
        path = Path(next(iter(spec.submodule_search_locations))) / "model_configs" / f"{name}.json"
        if not path.is_file():
            known = (p.stem for p in path.parent.glob("[!.]*.json"))
            raise UnknownName("architecture", name, [*BUNDLED, *known])
    return read_json(path)


def from_config(name: str, config: Mapping[str, Any]) -> ClipArchitecture:
    """Read the sizes; a key that would change what the towers compute is refused, not ignored."""
    vision = _sizes(
        name, "vision_cfg", config, image_size=224, patch_size=16, head_width=64, width=768
    )
    text = _sizes(name, "text_cfg", config, context_length=77, vocab_size=49408, heads=8, width=512)
    unknown = sorted(set(config) - {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"})
    if unknown or isinstance(vision["layers"], list):
        raise NoClosedForm(name, ", ".join(unknown) or f"layers={vision['layers']} (a ResNet)")
    common = {"embed_dim": config["embed_dim"], "quick_gelu": config.get("quick_gelu", False)}
    patch = vision["patch_size"]
    return ClipArchitecture(
        name,
        Tower(
            "vision",
            width=vision["width"],
            layers=vision["layers"],
            heads=vision["width"] // vision["head_width"],
            mlp_width=int(vision["width"] * vision["mlp_ratio"]),
            tokens=(vision["image_size"] // patch) ** 2 + 1,
            inputs=3 * patch * patch,
            **common,
        ),
        Tower(
            "text",
            width=text["width"],
            layers=text["layers"],
            heads=text["heads"],
            mlp_width=int(text["width"] * text["mlp_ratio"]),
            tokens=text["context_length"],
            inputs=text["vocab_size"],
            **common,
        ),
    )


def _sizes(name: str, part: str, config: Mapping[str, Any], **defaults: int) -> dict[str, Any]:
    """Return one tower's settings, open_clip's defaults filled in."""
    known = {"layers": 12, "mlp_ratio": 4.0, **defaults}
    given = config[part]
    if unknown := set(given) - set(known):
        raise NoClosedForm(name, f"{part}.{', '.join(sorted(unknown))}")
    return known | dict(given)
