"""The direction of imports: what stands lower knows nothing of what stands above it, and reports need no
torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import blocklora_lib

PACKAGE = Path(blocklora_lib.__file__).parent
# the package, its folders, errors, files, their text and the user's cache: allowed everywhere
FREE = {"", "paths", "strict", "files", "plain_data", "user_cache"}


def modules() -> dict[str, Path]:
    found = {
        p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): p for p in PACKAGE.rglob("*.py")
    }
    return {("" if k == "__init__" else k.removesuffix(".__init__")): v for k, v in found.items()}


# Levels from the bottom; a module may import what stands on its own or a lower level.
LEVELS = [
    {"", "paths", "strict", "files", "plain_data", "user_cache", "sealed", "code_digest", "gpus"},
    {"eager", "dropout", "recomputation", "frozen", "packing", "adapter_config"},
    {
        "specs",
        "devices",
        "seeding",
        "adapters",
        "architectures",
        "complexity",
        "bounds",
        "manifests",
        "parameters",
    },
    {"runs", "statistics", "adapter_files", "used_weight", "adapted", "attention", "sites"},
    {"summaries", "comparisons"},
    {"checks", "surroundings", "fitting"},
    {"fewshot", "augment", "views", "image_files", "data", "weights"},
    {"inject", "untouched", "towers"},
    {"checkpoints", "tokenizers", "tags"},
    {"backbones", "datasets"},
    {"training", "evaluation", "methods"},
    {"profiles", "provenance", "standing"},
    {"grids"},
    {"experiment"},
]
# Readers of records; they, and all that they import, do without torch at module level.
NO_TORCH = {
    "adapter_config",
    "runs",
    "specs",
    "manifests",
    "architectures",
    "complexity",
    "theory.tower_complexity",
    "theory.memory_model",
    "bounds",
    "statistics",
    "summaries",
    "comparisons",
    "results",
    "published",
    "published_tables",
    "estimate",
    "profiles",
    "grids",
    "weights",
    "paths",
    "gpus",
    "files",
    "plain_data",
    "strict",
    "sealed",
    "code_digest",
    "standing",
    "user_cache",
    "figures",
    "tables",
    "claims",
    "paper_claims",
    "judges",
    "judges.accuracy",
    "judges.costs",
    "judges.counts",
    "report",
} | {name for name in modules() if name.startswith("figures")}
# Bottom modules that may know only these of ours.
ONLY = {
    "adapters": {"adapter_config", "dropout", "eager"},
    "adapter_config": set(),
    "complexity": {"adapter_config"},
    "bounds": {"adapter_config", "complexity"},
    "manifests": set(),
    "runs": {"specs", "sealed"},
    "specs": set(),
}


def imported(name: str, path: Path, top_level: bool = False) -> tuple[set[str], set[str]]:
    """(modules of ours, other packages) that a file imports; top_level: leave out imports inside
    functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if top_level:
        lazy = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        lazy += [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        skip = {id(child) for node in lazy for child in ast.walk(node)}
    else:
        skip = set()
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    ours, others = set(), set()
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["blocklora_lib", *package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [".".join(base)]
            targets += [f"{targets[0]}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            head, *rest = target.split(".")
            if head != "blocklora_lib":
                others.add(head)
            elif ".".join(rest) in modules():
                ours.add(".".join(rest))
    return ours, others


def level(name: str) -> int | None:
    top = name.split(".")[0]
    return next((i for i, names in enumerate(LEVELS) if top in names), None)


@pytest.mark.parametrize("name", sorted(modules()), ids=lambda n: n or "__init__")
def test_no_module_imports_one_above_it(name):
    own = level(name)
    if own is None:  # figures, tables, report, cli and what comes later: at the top
        return
    ours, _ = imported(name, modules()[name])
    for other in ours - FREE:
        theirs = level(other)
        assert theirs is not None, f"{name} imports {other}, which stands above it"
        assert theirs <= own, f"{name} imports {other}, which stands above it"


@pytest.mark.parametrize("name", sorted(set(ONLY) & set(modules())))
def test_bottom_modules_know_only_theirs(name):
    ours, _ = imported(name, modules()[name])
    assert ours - FREE <= ONLY[name]


@pytest.mark.parametrize("name", sorted(NO_TORCH & set(modules())))
def test_readers_of_records_do_without_torch(name):
    seen, todo = set(), {name}
    while todo:
        module = todo.pop()
        seen.add(module)
        ours, others = imported(module, modules()[module], top_level=True)
        assert not {"torch", "torchvision", "open_clip"} & others, f"{name} reaches torch through {module}"
        todo |= ours - seen


@pytest.mark.parametrize(
    "name",
    sorted(
        {"tables", "claims", "paper_claims", "report"} & set(modules())
        | {m for m in modules() if "figures" in m}
    ),
)
def test_figures_and_tables_do_not_train(name):
    ours, _ = imported(name, modules()[name])
    assert not {m.split(".")[0] for m in ours} & {
        "training",
        "experiment",
        "methods",
        "backbones",
        "datasets",
    }


def test_nothing_imports_a_notebook_or_the_command_line():
    for name, path in modules().items():
        ours, others = imported(name, path)
        assert "notebooks" not in others, name
        assert "cli" not in ours or name == "__main__", name


def test_there_are_modules_to_check():
    assert {"runs", "methods", "methods.lora", "cli"} <= set(modules())
