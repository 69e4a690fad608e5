"""A machine with a GPU, without one: tensors that say they lie on "cuda:0", a CPU's numbers.

A `CudaTensor` holds an ordinary CPU tensor, which computes. Every operator that meets one is looked
at: what a GPU would refuse (two devices in one operator, a CPU's generator, `.numpy()`) raises here
too. Draws on it come from a generator of its own, of which a CPU's state says nothing, as on a GPU.
To PyTorch's C++ it is a "meta" tensor: every way to move it comes by here, and autograd's engine
needs no driver.

What it does not show: autocast and whatever else C++ decides by the device (foreach and fused
optimizers, fused attention), kernels that CUDA lacks, and nondeterminism. It is a matter of the
thread that enters it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
MOVES = {aten._to_copy, aten.to, aten.copy_, aten.copy}  # their purpose is to have two devices
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# a number of the CPU, as a tensor without dimensions, may stand beside CUDA in these and in the
# pointwise
TAKES_A_NUMBER = {aten.where, aten.fill_, aten.fill, aten.masked_fill, aten.masked_fill_, *INDEXING}


_counting: list[Any] = []  # who counts what a GPU would be asked for: launches.py
_capturing: list[Graph] = []  # the graph that keeps what it is asked for, if one does


class CudaTensor(Tensor):
    """A tensor on the only GPU. held: its numbers, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False):
        with torch.inference_mode(False):  # a view of a usual tensor is a usual one
            made = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device="meta",
                requires_grad=requires_grad,
            )
        made.held = held
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, CudaTensor):  # a GPU's parameter would move; this one cannot
            raise NotImplementedError("the stand-in's tensors stay on the GPU")
        Tensor.data.__set__(self, value)
        self.held = value.held

    def get_device(self) -> int:
        return 0

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def tolist(self):
        for counted in (*_counting, *_capturing):
            counted.waits("tolist")
        return self.detach().held.tolist()

    def __setitem__(self, index, value) -> None:
        if not isinstance(value, Tensor):  # C++ would make it a "meta" tensor, without its number
            value = CudaTensor(torch.tensor(value, dtype=self.dtype))
        super().__setitem__(index, value)

    def __repr__(self, **_) -> str:
        return f"CudaTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """Call an operator on CPU numbers; its result lies where a GPU's would, or raises as there."""
    for counted in _counting:
        counted.sees(func, args, kwargs)
    check(func, args, kwargs)
    result = called(func, args, kwargs)
    for graph in _capturing:
        graph.sees(func, args, kwargs, result)
    return result


def called(func: Any, args: tuple, kwargs: dict) -> Any:
    """The result of what a GPU does not refuse."""
    if func.overloadpacket in ANY_LENGTHS:
        return ANY_LENGTHS[func.overloadpacket](*args, **kwargs)
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    place = next(
        (leaf.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)), None
    )
    beside = given[:1] if func.overloadpacket in (INDEXING | MOVES) else given
    on_gpu = place == "cuda" or (place is None and any(isinstance(t, CudaTensor) for t in beside))
    if func.overloadpacket is aten.set_ or func.overloadpacket is aten._local_scalar_dense:
        on_gpu = False
    plain = tree_map(numbers, (args, kwargs))
    plain[1].pop("pin_memory", None)
    if "non_blocking" in plain[1]:
        plain[1]["non_blocking"] = False
    draws = _of_the_gpu() if on_gpu and _draws(func) else contextlib.nullcontext()
    with draws, torch.inference_mode(False):
        result = func(*plain[0], **plain[1])
    if func.overloadpacket is aten.to and result is numbers(given[0]) and place is not None:
        if on_gpu == isinstance(given[0], CudaTensor):
            return given[0]
        result = result.clone()
    if func._schema.is_mutable:
        owners = {id(t.held): t for t in given if isinstance(t, CudaTensor)}
        for owner in owners.values():
            _follow(owner)
        return tree_map(lambda t: owners.get(id(t), t) if isinstance(t, Tensor) else t, result)
    if not on_gpu:
        return result
    return tree_map(lambda t: CudaTensor(t) if isinstance(t, Tensor) else t, result)


def _groups(at_q: Tensor, at_k: Tensor, *sides: Tensor) -> Iterator[list[Tensor]]:
    """The sides q, k, v, .., (1, T, H, D), cut into neighbours of one length: (n, H, L, D) each."""
    assert at_q.dtype == at_k.dtype == torch.int32
    assert {int(at_q[-1]), int(at_k[-1])} >= {x.shape[1] for x in sides}
    lengths = list(zip(at_q.diff().tolist(), at_k.diff().tolist(), strict=True))
    runs = [(pair, len(list(same))) for pair, same in itertools.groupby(lengths)]
    sizes = [[n * pair[i] for pair, n in runs] for i in (0, 1)]
    cut = [x[0].split(sizes[0 if x.shape[1] == sum(sizes[0]) else 1]) for x in sides]
    for (_, n), parts in zip(runs, zip(*cut, strict=True), strict=True):
        yield [part.unflatten(0, (n, -1)).transpose(1, 2) for part in parts]


def _weights(q: Tensor, k: Tensor, causal: int) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (
        scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf) if causal else scores
    ).softmax(-1)


def _together(parts: list[Tensor]) -> CudaTensor:
    return CudaTensor(torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])[None])


def _forward(q, k, v, bias, at_q, at_k, most_q, most_k, p, causal, keep=False):
    """Attention of sequences of any lengths."""
    assert bias is None
    assert p == 0
    q, k, v, at_q, at_k = map(numbers, (q, k, v, at_q, at_k))
    assert most_q >= int(at_q.diff().max())
    assert most_k >= int(at_k.diff().max())
    groups = _groups(at_q, at_k, q, k, v)
    found = _together([_weights(a, b, causal) @ c for a, b, c in groups])
    seed = torch.zeros((), dtype=torch.int64)
    rest = torch.empty(1 if keep else 0), seed, seed.clone()
    return found, *map(CudaTensor, rest), most_q, most_k


def _backward(grad, q, k, v, bias, out, at_q, at_k, most_q, most_k, sums, p, seed, offset, causal,
              *_, **__):  # fmt: skip
    assert len(sums), "the forward pass was not told that there would be a backward one"
    grad, q, k, v, at_q, at_k = map(numbers, (grad, q, k, v, at_q, at_k))
    found = []
    for g, a, b, c in _groups(at_q, at_k, grad, q, k, v):
        weights, below = _weights(a, b, causal), g @ c.mT
        scores = weights * (below - (below * weights).sum(-1, keepdim=True)) / a.shape[-1] ** 0.5
        found.append((scores @ b, scores.mT @ a, weights.mT @ g))
    return *map(_together, map(list, zip(*found, strict=True))), CudaTensor(torch.empty(0))


# as torch's nested tensors call them
ANY_LENGTHS = {
    aten._efficient_attention_forward: _forward,
    aten._efficient_attention_backward: _backward,
}


def _follow(owner: CudaTensor) -> None:
    """In-place changes of shape are not used, and would leave the outside behind."""
    inside = owner.held.shape, owner.held.stride()
    assert (owner.shape, owner.stride()) == inside, "resized in place"


def check(func: Any, args: tuple, kwargs: dict) -> None:
    """Raise RuntimeError for what CUDA's kernels refuse."""
    packet = func.overloadpacket
    leaves = tree_leaves((args, kwargs))
    given = [t for t in leaves if isinstance(t, Tensor)]
    if packet in INDEXING:
        if not isinstance(args[0], CudaTensor) and any(isinstance(t, CudaTensor) for t in given):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        given = [args[0], *(t for t in tree_leaves((args[2:], kwargs)) if isinstance(t, Tensor))]
    for leaf in leaves:
        if isinstance(leaf, torch.Generator) and any(isinstance(t, CudaTensor) for t in given):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if (
        isinstance(kwargs.get("generator"), torch.Generator)
        and str(kwargs.get("device") or "cpu") != "cpu"
    ):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if packet in MOVES:
        return
    number = torch.Tag.pointwise in func.tags or packet in TAKES_A_NUMBER
    here = [t for t in given if isinstance(t, CudaTensor)]
    there = [t for t in given if not isinstance(t, CudaTensor) and not (number and t.dim() == 0)]
    if here and there:
        raise RuntimeError(
            "Expected all tensors to be on the same device, "
            f"but found at least two devices, cuda:0 and cpu! ({func})"
        )
    written = [
        args[i] for i, a in enumerate(func._schema.arguments) if a.is_write and i < len(args)
    ]
    written += [kwargs[a.name] for a in func._schema.arguments if a.is_write and a.name in kwargs]
    if here and any(isinstance(t, Tensor) and not isinstance(t, CudaTensor) for t in written):
        raise RuntimeError(
            f"Expected the tensor that is written to be on cuda:0, but it is on cpu! ({func})"
        )


def numbers(x: Any) -> Any:
    """The CPU tensor that is held, and the CPU for any device; anything else as it is."""
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.held if isinstance(x, CudaTensor) else x


def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


# --- what `torch` and `torch.cuda` answer
# -----------------------------------------------------------------


class Gpu:
    """The state of the GPU's generator, which `torch.cuda` reads and sets; asked: how often."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.asked: list[str] = []

    def get_rng_state(self, device: Any = None) -> Tensor:
        self.asked.append("get")
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.asked.append("set")
        self.generator.set_state(state)

    def manual_seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)


class Graph:
    """torch.cuda.CUDAGraph: the operators between its start and its end, on the same memory again.

    CUDA does not compute while it keeps a graph; here that is so of its draws.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[Any, tuple, dict, Any]] = []

    def sees(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        if why := wait_of(func, args, kwargs):
            self.waits(why)
        self._asked.append((func, args, kwargs, result))

    def waits(self, why: str) -> None:
        raise RuntimeError(f"operation not permitted when stream is capturing: {why}")

    def replay(self) -> None:
        for func, args, kwargs, made in self._asked:
            again = called(func, args, kwargs)
            if not (func.is_view or func._schema.is_mutable):
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, CudaTensor):
                        old.held.copy_(new.held)


@contextlib.contextmanager
def keeping(graph: Graph, **how: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    before = _gpu.generator.get_state()
    _capturing.append(graph)
    try:
        yield
    finally:
        _capturing.remove(graph)
        _gpu.generator.set_state(before)


READS = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "item", "unique"}


def wait_of(func: Any, args: tuple, kwargs: dict) -> str | None:
    """What Python waits for in a call that reads a number or moves some; '' if it does not wait.

    None of any other call.
    """
    name = func.overloadpacket._qualified_op_name.partition("::")[2]
    if name in READS:
        return name
    if name in ("_to_copy", "copy_"):
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        source = given[-1]
        target = given[0].device if name == "copy_" else kwargs.get("device")
        target = source.device if target is None else torch.device(target)
        if (target.type == "cuda") != isinstance(source, CudaTensor):
            pinned = getattr(source, "pinned", False) and kwargs.get("non_blocking")
            wait = not pinned and not (name == "copy_" and source.dim() == 0)
            return f"{name} {source.device.type} to {target.type}" if wait else ""
    return None


_gpu: Gpu | None = None


@contextlib.contextmanager
def _of_the_gpu() -> Iterator[None]:
    """Draws within it come from the GPU's generator; the CPU's stays as it was."""
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_gpu.generator.get_state())
    try:
        yield
    finally:
        _gpu.generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


class _Calls(TorchFunctionMode):
    """What C++ would do before an operator is called: read numbers into a tensor of its device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "cuda" and args and isinstance(args[0], Tensor):
            return args[0].to(CUDA)
        if name == "pin_memory":
            pinned = args[0].clone()
            pinned.pinned = True  # what is copied from here need not be waited for
            return pinned
        if name == "scaled_dot_product_attention" and _counting:
            return _counting[-1].attention(func, *args, **kwargs)
        if (
            name in ("tensor", "as_tensor", "asarray")
            and args
            and _type_of(kwargs.get("device")) == "cuda"
        ):
            wants = {"requires_grad": kwargs.pop("requires_grad", False)}
            made = func(args[0], **{k: v for k, v in kwargs.items() if k != "device"})
            return made.to(CUDA).requires_grad_(**wants)
        _by_hand.append(any(_type_of(a) == "meta" for a in (*args, *kwargs.values())))
        try:
            return func(*args, **kwargs)
        finally:
            _by_hand.pop()


def _type_of(place: Any) -> str | None:
    """'cuda' of "cuda:0"; None of what is no device."""
    if isinstance(place, str):
        return place.split(":")[0]
    return place.type if isinstance(place, torch.device) else None


_by_hand = [False]  # whether a call on the way names "meta": then that is meant


class _Operators(TorchDispatchMode):
    """Every operator; of those that make a tensor, no `CudaTensor` need be among the arguments."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        places = {leaf.type for leaf in leaves if isinstance(leaf, torch.device)}
        if "meta" in places and not any(_by_hand):  # C++ made it for one of ours, by its device
            args, kwargs = tree_map(
                lambda x: CUDA if isinstance(x, torch.device) else x, (args, kwargs)
            )
        elif "cuda" not in places and not any(isinstance(t, CudaTensor) for t in leaves):
            return func(*args, **kwargs)
        return computed(func, args, kwargs)


class _Here:
    """torch.cuda.device: there is one."""

    def __init__(self, device: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@contextlib.contextmanager
def fake_cuda() -> Iterator[Gpu]:
    """Within it, "cuda:0" is there."""
    global _gpu
    torch._C._ensureCUDADeviceGuardSet()  # else "cuda" asks the driver for the current one
    gpu = Gpu()
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "init": None,
        "is_initialized": True,
        "synchronize": None,
        "get_device_name": "a fake GPU",
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 1 << 20,
        "memory_allocated": 1 << 20,
        "max_memory_reserved": 1 << 20,
        "empty_cache": None,
        "mem_get_info": (1 << 36, 1 << 36),
        "_lazy_init": None,
        "is_bf16_supported": True,
        "graph_pool_handle": (0, 0),
    }
    with contextlib.ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(
                mock.patch.object(torch.cuda, name, lambda *a, _value=value, **k: _value)
            )
        for name in ("get_rng_state", "set_rng_state", "manual_seed"):
            stack.enter_context(mock.patch.object(torch.cuda, name, getattr(gpu, name)))
        stack.enter_context(mock.patch.object(torch.cuda, "manual_seed_all", gpu.manual_seed))
        stack.enter_context(mock.patch.object(torch.cuda, "CUDAGraph", Graph))
        stack.enter_context(mock.patch.object(torch.cuda, "graph", keeping))
        stack.enter_context(mock.patch.object(torch.cuda, "_initialized", True))
        stack.enter_context(mock.patch.object(torch.cuda, "device", _Here))
        stack.enter_context(mock.patch.dict("os.environ", CUBLAS_WORKSPACE_CONFIG=":4096:8"))
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        swapped = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # keeps parameters
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        stack.callback(globals().__setitem__, "_gpu", _gpu)
        _gpu = gpu
        stack.enter_context(_Operators())
        stack.enter_context(_Calls())
        yield gpu


def on_meta(function: Any) -> Any:
    """Wrap a function of tensors that are all on "meta", like the stand-in's to backward."""

    def outside(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return outside


def stay_here(monkeypatch: Any) -> None:
    """Let the library do in this thread what it would do in others, which have no stand-in."""
    reading = ("learning.loop", "learning.evaluation", "runs.classifier")
    for module in (*reading, "measure.gpu_acceptance"):
        monkeypatch.setattr(f"blocklora_lib.{module}.ahead", iter)
    for module in ("inference", "step_costs", "training_step"):
        monkeypatch.setattr(f"blocklora_lib.measure.{module}.peak_memories", _measured_here)
    for module in ("processes", "benchmark_output"):
        monkeypatch.setattr(f"blocklora_lib.measure.{module}.in_processes", _timed_here)
    from blocklora_lib.measure import timing

    sample, called = timing._sample, []

    def once(function: Any, calls: int, device: torch.device) -> float:
        """What is timed is called once; the seconds mean nothing."""
        if function not in called:
            called.append(function)
            sample(function, 1, device)
        return random.uniform(1, 2)

    monkeypatch.setattr(timing, "_sample", once)


def _timed_here(work: Any, processes: int, label: str = "", **arguments: Any) -> Any:
    """Do the work of `in_processes` once."""
    return work(seed=1, **arguments).assign(process=1)


def _measured_here(work: str, arguments: Any, device: str = "cpu", **_: Any) -> list[Any]:
    """Do the work of `peak_memories`; the bytes mean nothing."""
    from blocklora_lib.measure.peak_memory import Memory

    module, _, function = work.partition(":")
    for given in arguments:
        getattr(importlib.import_module(module), function)(device=device, **given)()
    return [Memory(1, 2 + i) for i, _ in enumerate(arguments)]
