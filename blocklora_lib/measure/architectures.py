"""Where adapters go in each family of models that open_clip lists, and whether all is right there.

Random weights and random tokens, so that neither weights nor tokenizers are fetched: see
`families.py`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters.attach import AdapterSet, attach, attach_linear
from ..adapters.config import TOWERS, AdapterConfig
from ..core.files import package_version, write_whole
from ..core.json_data import read_json
from ..core.paths import RESULTS
from ..core.schema import AdapterError
from ..core.seeding import seeded_torch
from ..layers.attention_layers import patterns
from ..layers.names import NamedModules, parent
from ..runs.provenance import git_revision
from .families import FAMILIES, TOKENS, WORDS, Family

EXACT = 1e-9  # float64: sums of some thousand terms, through a few layers
RECORD = RESULTS / "reference" / "architectures.json"
CONFIG = AdapterConfig(rank=4, n_blocks=2, dropout=0.0, targets=("q", "k", "v", "o"))


def architecture_table(
    families: Iterable[Family] = FAMILIES, on_row: Callable[[dict[str, Any]], None] | None = None
) -> pd.DataFrame:
    """Return a row for each tower of each family; see `examine` for the columns."""
    rows = []
    for family in families:
        for tower in TOWERS:
            rows.append(examine(family, tower))
            if on_row:
                on_row(rows[-1])
    return pd.DataFrame(rows)


def write_record(frame: pd.DataFrame, path: Path = RECORD) -> None:
    """Write the table and what it was computed with as JSON."""
    packages = ("blocklora", "torch", "open_clip_torch", "timm", "transformers")
    facts = {
        "date": date.today().isoformat(),
        "revision": git_revision(),
        "packages": {name: package_version(name) for name in packages},
        "rows": json.loads(frame.to_json(orient="records", double_precision=15)),
    }
    write_whole(path, json.dumps(facts, indent=1) + "\n")


def read_record(path: Path = RECORD) -> pd.DataFrame:
    """Return the table of a record; attrs has what it was computed with."""
    facts = read_json(path)
    frame = pd.DataFrame(facts.pop("rows"))
    frame.attrs |= facts
    return frame


def examine(family: Family, tower: str) -> dict[str, Any]:
    """Attach to one tower, and look whether each adapter is reached, merged, trained and loaded.

    how: "attach", or "attach_linear" on all linear layers where `attach` refuses (`refusal`: its
    sentence), or "refused"; where: the layers, numbers as *. gradients: adapters of which every
    tensor gets a gradient, finite and not zero. Errors are relative, the largest of all outputs:
    by_hand, against a plain model with W + ΔW written into its weights; merged; loaded, from a file
    into another model. changed: what ΔW does to the outputs, relative. unmerged: whether W has its
    bits again. moved: adapters that a step of AdamW changes; frozen_moved: weights that it must not
    change, and does. right: whether all of it is as it has to be.
    """
    plain = family.build()
    model = copy.deepcopy(plain)
    row: dict[str, Any] = dict(family=family.name, config=family.config, tower=tower)
    row["weights"] = sum(p.numel() for p in plain.parameters())
    put = attach_to(model, tower)
    adapters, row["how"], row["refusal"] = put
    if adapters is None:
        return row
    give_values(adapters)
    row["where"] = ", ".join(patterns(name for name, _ in adapters.sites))
    row["adapters"] = len(adapters.adapters)
    row["parameters"] = adapters.num_parameters()
    rows_of = partial(encode, family, tower)
    with torch.no_grad():
        unmerged = rows_of(model)
        row["by_hand"] = difference(unmerged, rows_of(by_hand(plain, adapters)))
        row["changed"] = difference(rows_of(plain), unmerged)
        row["loaded"] = difference(rows_of(reloaded(adapters, plain)), unmerged)
        row["merged"] = difference(rows_of(adapters.merge().model), unmerged)
        adapters.unmerge()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    own = dict(plain.named_parameters())
    row["unmerged"] = all(same_bits(before[name], own[name]) for name in frozen)
    row |= step(family, adapters)
    after = dict(model.named_parameters())
    row["frozen_moved"] = sum(not same_bits(before[name], after[name]) for name in frozen)
    errors = row["by_hand"], row["merged"], row["loaded"]
    row["right"] = (
        max(errors) < EXACT < row["changed"]
        and row["gradients"] == row["moved"] == row["adapters"]
        and row["unmerged"]
        and not row["frozen_moved"]
    )
    return row


def attach_to(model: nn.Module, tower: str) -> tuple[AdapterSet | None, str, str]:
    """Return the adapters, by which function, and why `attach` refused where it did."""
    config = CONFIG.model_copy(update={"towers": (tower,)})
    generator = torch.Generator().manual_seed(0)
    try:
        return attach(model, config, generator).double(), "attach", ""
    except AdapterError as error:
        refusal = str(error)
    try:
        names = [name for name, _ in linear_layers(model, tower)]
        return attach_linear(model, names, config, generator).double(), "attach_linear", refusal
    except AdapterError as error:
        return None, "refused", f"{refusal}; by names: {error}"


def linear_layers(model: nn.Module, tower: str) -> NamedModules:
    """Return the linear layers of a tower that a forward may call."""
    modules = dict(model.named_modules())
    prefix = "visual." if tower == "vision" else ("text." if "text" in modules else "transformer.")
    return [
        (name, module)
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
        and name.startswith(prefix)
        and not isinstance(modules[parent(name)], nn.MultiheadAttention)
    ]


def give_values(adapters: AdapterSet) -> None:
    """Let no B be zero: an update that is zero is right everywhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.B.normal_(0, 0.3, generator=generator)


def encode(family: Family, tower: str, model: Any) -> Tensor:
    """Return the rows of two images or two texts, (2, e)."""
    generator = torch.Generator().manual_seed(2)
    if tower == "text":
        return model.encode_text(torch.randint(2, WORDS, (2, TOKENS), generator=generator))
    shape = 2, 3, family.size, family.size
    return model.encode_image(torch.randn(shape, generator=generator, dtype=torch.float64))


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value; infinite where one is no number."""
    largest = float((found - expected).abs().max() / expected.abs().max())
    return largest if math.isfinite(largest) else math.inf


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether they are equal to the bit; weights that CoCa leaves as memory was may be NaN."""
    return torch.equal(a.view(torch.int64), b.view(torch.int64))


def by_hand(plain: nn.Module, adapters: AdapterSet) -> nn.Module:
    """Return a plain model whose weights are W + ΔW, without the library's forward or merge."""
    model = copy.deepcopy(plain)
    with torch.no_grad():
        for name, adapter in adapters.adapters.items():
            module: Any = model.get_submodule(parent(name))
            target, delta = name.rpartition(".")[2], adapter.delta_weight()
            if target in ("weight", "o"):
                (module if target == "weight" else module.out_proj).weight += delta
            else:
                module.in_proj_weight.chunk(3)["qkv".index(target)].add_(delta)
    return model


def reloaded(adapters: AdapterSet, plain: nn.Module) -> nn.Module:
    """Return another model with the adapters, by a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "adapter.safetensors")
        adapters.save(path)
        return AdapterSet.load(path, copy.deepcopy(plain)).model


def step(family: Family, adapters: AdapterSet) -> dict[str, int]:
    """Take one training step of the contrastive loss; count gradients and what moved."""
    model, own = adapters.model.train(), adapters.adapters.values()
    start = [[p.detach().clone() for p in adapter.parameters()] for adapter in own]
    optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=1e-3))
    with seeded_torch(0, "architectures/dropout of the model"):
        image, text = (F.normalize(encode(family, t, model), dim=-1) for t in TOWERS)
        F.cross_entropy(10 * image @ text.T, torch.arange(2)).backward()
    gradients = [all(has_gradient(p) for p in adapter.parameters()) for adapter in own]
    optimizer.step()
    moved = [
        all(not torch.equal(a, b) for a, b in zip(adapter.parameters(), before, strict=True))
        for adapter, before in zip(own, start, strict=True)
    ]
    return {"gradients": sum(gradients), "moved": sum(moved)}


def has_gradient(p: Tensor) -> bool:
    """Whether a parameter has a finite gradient that is not all zero."""
    return p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.abs().max() > 0)


def tell(row: dict[str, Any]) -> str:
    """Say in a line what was seen of a tower."""
    head = f"{row['family']}, {row['tower']} tower"
    if row["how"] == "refused":
        return f"{head}: refused, {row['refusal']}"
    worst = max(row["by_hand"], row["merged"], row["loaded"])
    return (
        f"{head}: {'right' if row['right'] else 'NOT RIGHT'}; {row['adapters']} adapters by "
        f"{row['how']} on {row['where']}; {row['gradients']} with a gradient; "
        f"largest error {worst:.0e}"
    )
