"""Profiles as files: where they are, what `extends` makes of them, the rates chosen for them."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..core.files import user_path
from ..core.paths import PROFILES, bundled
from ..core.schema import UnknownName, explain, near
from ..core.yaml_data import read_yaml
from .profile import Profile
from .rates import with_rates


def profile_path(name: str | Path, folder: Path = PROFILES) -> Path:
    """The file of profile `name`: one of the profiles folder, or a path ending in .yaml or .yml."""
    if is_file_name(name):
        return user_path(name)
    if not re.fullmatch(r"[\w.-]+", str(name)):
        raise ValueError(
            f"{str(name)!r} is no profile's name; name a profile of the project "
            f"({_known(folder)}), or give the path of a file that ends in .yaml or .yml"
        )
    return bundled(folder) / f"{name}.yaml"


def is_file_name(profile: str | Path) -> bool:
    """Whether a profile is named by the path of its file."""
    return str(profile).endswith((".yaml", ".yml"))


def _known(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("[!.]*.yaml")))


def load_profile(name: str | Path, folder: Path = PROFILES, chosen: bool = True) -> Profile:
    """Read the profile `name` of the profiles folder, or the YAML file at a path.

    A profile that extends another is that one's facts with its own on top: mappings are merged key
    by key, everything else, lists included, is replaced, and an experiment set to null is dropped.
    Of a profile that chooses rates, each trained method has its own (see `rates.with_rates`);
    chosen False: it is read for the choice itself, before any was made.
    """
    chain = _chain(name, folder)
    facts = functools.reduce(_merged, [own for _, own in reversed(chain)])
    try:
        profile = Profile.model_validate(facts)
    except ValidationError as error:
        raise ValueError(f"{_origin(chain, error)}: {explain(error)}") from None
    if is_file_name(name):
        profile = profile.knowing(file=str(name))
    if not (chosen and profile.rates):
        return profile
    command = f"say `blocklora rates --profile {shlex.quote(str(name))}`"
    return with_rates(profile, _rates_file(chain), command)


def profile_files(name: str | Path, folder: Path = PROFILES) -> list[Path]:
    """Return the files that a profile is made of: its own, those that it extends, chosen rates."""
    chain = _chain(name, folder)
    return [path for path, _ in chain] + [file for file in [_rates_file(chain)] if file.exists()]


def rates_file(name: str | Path, folder: Path = PROFILES, own: bool = False) -> Path:
    """Return the file of the rates that a profile uses: its own, or that of the one it extends.

    own: the one that choosing for this profile writes.
    """
    return _rates_file(_chain(name, folder)[: 1 if own else None])


def _rates_file(chain: list[tuple[Path, dict[str, Any]]]) -> Path:
    """The first file of chosen rates that is there, up to the profile that declares the grid."""
    declares = next((i for i, (_, facts) in enumerate(chain) if "rates" in facts), 0)
    files = [path.parent / "rates" / f"{path.stem}.yaml" for path, _ in chain[: declares + 1]]
    return next(filter(Path.exists, files), files[-1])


def _chain(name: str | Path, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(file, what it says) of the profile and of each one that it extends, the profile itself
    first.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    base: str | Path | None = name
    while base is not None:
        path = profile_path(base, folder)
        known = [p.stem for p in folder.glob("[!.]*.yaml")]
        if not path.exists():
            wrong: Exception = UnknownName("profile", base, known)
            if is_file_name(base):
                wrong = FileNotFoundError(
                    f"profile {path} is missing; name a file, or one of {_known(folder)}"
                )
            if chain:
                wrong = ValueError(f"{chain[-1][0]}: extends: {wrong}")
            raise wrong
        if any(path.samefile(seen) for seen, _ in chain):
            way = " -> ".join(p.stem for p in [*(seen for seen, _ in chain), path])
            raise ValueError(
                f"{chain[-1][0]}: extends: {way} is a circle; let one of them stand by itself"
            )
        facts = read_yaml(path)
        base = None
        if "extends" in facts:
            base = facts.pop("extends")
            if not isinstance(base, str):
                raise ValueError(
                    f"{path}: extends: {base!r} is no profile's name; {near(base, known)}"
                )
            if missing := [key for key in ("name", "description") if key not in facts]:
                lacks = f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
                raise ValueError(f"{path}: {lacks}: a profile that extends another has its own")
            if is_file_name(base):
                try:
                    base = path.parent / Path(base).expanduser()  # a file beside this one
                except RuntimeError as error:
                    raise ValueError(f"{path}: extends: {base!r}: {error}") from None
        chain.append((path, facts))
    return chain


def _merged(base: Any, own: Any, drop: bool = False) -> Any:
    """`own` over `base`; drop: a null takes the key away (an experiment), else it is a value."""
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    merged = base | {
        key: _merged(base.get(key), value, key == "experiments") for key, value in own.items()
    }
    return {k: v for k, v in merged.items() if not (drop and v is None and k in base)}


def _origin(chain: list[tuple[Path, dict[str, Any]]], error: ValidationError) -> Path:
    """The file that says what the error is about: the first of the chain that holds the key."""
    problem = error.errors()[0]
    unknown = re.match(r"Value error, unknown key (.+?); ", problem["msg"])
    for path, facts in chain:
        value: Any = facts
        try:
            for key in problem["loc"]:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            continue
        if not unknown or unknown[1] in map(repr, value):
            return path
    return chain[0][0]
