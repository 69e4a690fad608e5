"""What a run does not use of the libraries that it imports is not imported, until it is asked for.

open_clip asks for transformers and timm, which few of its models need, and goes on where they are
not installed: they are absent while it is imported, and a class that builds on one looks again, by
its module's own words, when it is built. One operator of torchvision asks for torch's compiler, to
know whether it could be used, and torch's optimizers do, to be left alone by it: the one asks when
it is called, the others do without. What was imported before is left as it is.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any
from warnings import catch_warnings, filterwarnings

COMPILER = "torch._dynamo"
# the modules of open_clip that try to import one of the two, and their class that needs it
BUILT = {"hf_model": "HFTextEncoder", "timm_model": "TimmModel", "coca_model": "CoCa"}


def install() -> None:
    """Have later imports of open_clip and torchvision be lean; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def spare_the_compiler() -> None:
    """Let torch's optimizers run as they stand what they have its compiler leave alone."""
    from torch import optim, set_grad_enabled

    if COMPILER in sys.modules:
        return
    for name in ("add_param_group", "zero_grad"):
        plain = getattr(optim.Optimizer, name).__wrapped__
        plain.__dynamo_disable = plain  # where torch looks before it imports the compiler
    kinds: tuple[Any, ...] = (optim.SGD, optim.Adam)  # AdamW is an Adam
    for optimizer in kinds:
        step = optimizer.step.__wrapped__

        @wraps(step)
        def stepped(self: Any, *args: Any, _step: Any = step, **kwargs: Any) -> Any:
            with set_grad_enabled(self.defaults["differentiable"]):
                return _step(self, *args, **kwargs)

        optimizer.step = stepped


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        loaders = {"open_clip": _OpenClip, "torchvision": _TorchVision}
        spec = PathFinder.find_spec(name, path) if name in loaders else None
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = loaders[name](spec.loader.name, spec.loader.path)
        return spec


class _OpenClip(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _standing_in({"transformers": None, "timm": None}) as absent, catch_warnings():
            filterwarnings("ignore", "IProgress not found")  # bars are of text, not widgets
            super().exec_module(module)
        for name, built in BUILT.items():
            inner = sys.modules.get(f"{module.__name__}.{name}")
            if absent and inner:
                _look_when_built(inner, getattr(inner, built))


class _TorchVision(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        outer, inner = _StandIn(COMPILER), _StandIn(f"{COMPILER}.utils")
        inner.is_compile_supported = _is_compile_supported
        with _standing_in({outer.__name__: outer, inner.__name__: inner}):
            super().exec_module(module)


class _StandIn(ModuleType):
    """Stands for a module of the compiler until someone asks for what it does not have."""

    is_compile_supported: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of the machinery of imports
            raise AttributeError(name)
        for known in (COMPILER, f"{COMPILER}.utils"):
            if isinstance(sys.modules.get(known), _StandIn):
                del sys.modules[known]
        return getattr(import_module(self.__name__), name)


def _is_compile_supported(device_type: str) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


@contextmanager
def _standing_in(modules: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the names that are not imported yet; for so long these modules stand for them, None for
    one that is not to be had.
    """
    names = [name for name in modules if name not in sys.modules]
    sys.modules.update({name: modules[name] for name in names})
    try:
        yield names
    finally:
        for name in names:
            if sys.modules.get(name, 0) is modules[name]:
                del sys.modules[name]


def _look_when_built(module: ModuleType, built: Any) -> None:
    """Let a class have its module look again for what it did not find, before it is built."""
    build: Callable[..., None] = built.__init__

    @wraps(build)
    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        tree = ast.parse(inspect.getsource(module))
        tree.body = [node for node in tree.body if isinstance(node, ast.Try)]
        exec(compile(tree, str(module.__file__), "exec"), vars(module))
        build(self, *args, **kwargs)

    built.__init__ = look
