"""What an adapter is, as settings: which update, how wide, and on which projections. No torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

TARGETS = ("q", "k", "v", "o")
TOWERS = ("vision", "text")
CUT = ("block_lora", "frozen_a")  # kinds that keep n blocks
UNUSED = {  # settings that say nothing to a kind, and why
    "pissa": (("init", "init_scale"), "it starts from W's singular vectors"),
    "vera": (("alpha", "scaling", "init", "init_scale"), "its random matrices are fixed"),
}
# of rank and of blocks: wider than any layer, and small enough to list what divides it
MOST = 2**16


class AdapterConfig(BaseModel):
    """Which update, how wide, and where. `rank` and `n_blocks` are the paper's (r, n). n_blocks
    left out is 2 for block_lora, frozen_a and collapsed, else 1. What does not go together is
    refused (pydantic's ValidationError, a ValueError).

    kind      "lora"        ΔWᵀ = s A B, rank r.
              "block_lora"  ΔWᵀ = s A_s Σ B_i.
              "frozen_a"    the ablation 'w/o A': Block-LoRA whose A_s stays at its random start.
              "collapsed"   ΔWᵀ = s A_s B, one B = Σ B_i: Block-LoRA without the copies.
              "dora", "pissa", "vera": LoRA's relatives, without blocks (`relatives/`).
    reading   "total_rank"  the default: r is the total rank, which is cut; A_s has width r/n.
              "block_rank"  r is the width of every block; the LoRA that is cut has rank n r.
              "input"       d_in is cut: x = [x_1 .. x_n], A_s: (d_in/n) x r, x A = (Σ x_i) A_s.
    scaling   "sqrt_rank": s = alpha/sqrt(r), CLIP-LoRA's code; "rank": s = alpha/r, LoRA's paper.
              r is `rank` in every kind and reading, so cutting changes no scale. VeRA: s = 1.
    init      "kaiming"     uniform in ±init_scale/sqrt(d_in): Kaiming, a = sqrt 5, as CLIP-LoRA's;
              "normal"      standard deviation init_scale/sqrt(d_in). B starts at zero.
    dropout   on the adapter's input, drawn independently for each of q, k, v (as CLIP-LoRA does).
    targets   some of q, k, v, o; towers: of vision, text. `attach_linear` reads none of these.
    layers    "all", or depths counted from 0 within each tower, negative ones from the last layer.

        >>> cut = AdapterConfig(rank=4)  # r = 4 is the total rank
        >>> cut.n_blocks, cut.block_rank, cut.total_rank, cut.scale
        (2, 2, 4, 0.5)
        >>> AdapterConfig(rank=4, n_blocks=2, reading="block_rank").total_rank
        8
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lora", "block_lora", "frozen_a", "collapsed", "dora", "pissa", "vera"] = (
        "block_lora"
    )
    rank: int = Field(default=2, ge=1, le=MOST)
    # left out, filled by kind before it is checked
    n_blocks: int = Field(default=None, ge=1, le=MOST)  # type: ignore[assignment]
    reading: Literal["total_rank", "block_rank", "input"] = "total_rank"
    alpha: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    scaling: Literal["sqrt_rank", "rank"] = "sqrt_rank"
    dropout: float = Field(default=0.25, ge=0, lt=1, allow_inf_nan=False)
    init: Literal["kaiming", "normal"] = "kaiming"
    init_scale: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    targets: tuple[str, ...] = ("q", "k", "v")
    towers: tuple[str, ...] = TOWERS
    layers: Literal["all"] | tuple[int, ...] = "all"

    @model_validator(mode="before")
    @classmethod
    def _fill_n_blocks(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("n_blocks") is None:
            cut = values.get("kind", "block_lora") in (*CUT, "collapsed")
            values = {**values, "n_blocks": 2 if cut else 1}
        return values

    @field_validator("rank", "n_blocks", "alpha", "dropout", "init_scale", "layers", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        entries = value if isinstance(value, list | tuple) else (value,)
        if value != "all" and any(isinstance(entry, bool | str) for entry in entries):
            raise ValueError(f"{info.field_name}={value!r} is no number; write one such as 1")
        return value

    @field_validator("targets", "towers")
    @classmethod
    def _known_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = TARGETS if info.field_name == "targets" else TOWERS
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{info.field_name} names {name!r}; use some of {', '.join(known)}"
                )
        if not names:
            raise ValueError(f"{info.field_name} is empty; use some of {', '.join(known)}")
        return tuple(name for name in known if name in names)  # one order, one hash

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, layers: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if layers == ():
            raise ValueError('layers is empty; use "all" or at least one depth')
        return layers

    @model_validator(mode="after")
    def _rank_can_be_cut(self) -> AdapterConfig:
        r, n = self.rank, self.n_blocks
        if self.kind not in (*CUT, "collapsed") and n != 1:
            raise ValueError(
                f"kind={self.kind!r} has one block, not n_blocks={n}; "
                "use kind='block_lora', or n_blocks=1"
            )
        unused, why = UNUSED.get(self.kind, ((), ""))
        for name in unused:
            if (given := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={given!r} says nothing to kind={self.kind!r}: {why}; leave it out"
                )
        if self.kind == "collapsed" and self.reading == "input" and n != 1:
            raise ValueError(
                f"reading='input' has one B already, so kind='collapsed' with n_blocks={n} says "
                "nothing; use reading='total_rank' or 'block_rank', or kind='block_lora'"
            )
        if self.reading == "total_rank" and r % n:
            fits = ", ".join(str(m) for m in range(1, r + 1) if r % m == 0)  # at most 100
            raise ValueError(
                f"rank={r} cannot be cut into n_blocks={n} equal blocks; "
                f"use n_blocks in ({fits}), or a rank that is a multiple of {n}, "
                f"or reading='block_rank' (every block has width {r}) or 'input' (cut along d_in)"
            )
        return self

    @property
    def block_rank(self) -> int:
        """Width of the shared down-projection A_s."""
        return self.rank // self.n_blocks if self.reading == "total_rank" else self.rank

    @property
    def total_rank(self) -> int:
        """Rank of the LoRA that is cut into blocks (of the update itself where d_in is cut)."""
        return self.rank * self.n_blocks if self.reading == "block_rank" else self.rank

    @property
    def scale(self) -> float:
        """s of the update."""
        if self.kind == "vera":
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "sqrt_rank" else self.rank)
