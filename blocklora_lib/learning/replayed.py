"""Batches of one length by CUDA graphs: Python asks for their kernels once, the GPU repeats them.

A fast GPU computes a training step of CLIP in a fifth of the time in which Python asks for its
thousand kernels. A graph holds them all, forward and backward, with the memory that they read and
write, and one call computes them. Nothing else changes: the kernels and their order are the same,
and PyTorch moves its generator, from which dropout draws, on at each replay as the step itself
would; so the bits are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..clip.backbone import Backbone
from ..clip.towers import TextTower, images_are_plain

WARM_UP = 3  # batches before the first graph: kernels are loaded, what is kept is made
WORTH = 10  # batches of a length that are left, for which a graph is made

Function = Callable[..., Tensor]


def can_replay(backbone: Backbone, recomputes: bool) -> bool:
    """Whether a batch through this backbone's towers asks for the same kernels each time.

    Of others than open_clip's plain transformers nothing is known: they may look at a number on
    their way. recomputes: backward encodes again, for which it sets the generator back by hand.
    """
    return (
        backbone.device.type == "cuda"
        and type(backbone) is Backbone
        and not recomputes
        and images_are_plain(backbone.model)
        and TextTower(backbone.model).can_pack
    )


class Replayed:
    """function(batch, ..) -> tensor, by a graph for each length of a batch.

    left: how many batches of each length are to come. A length of few batches is computed as it is,
    as the first batches of all are. trained: parameters on which the function leaves gradients.
    """

    def __init__(
        self,
        function: Function,
        left: Mapping[int, int],
        backbone: Backbone,
        trained: Sequence[Tensor] = (),
    ) -> None:
        self._function, self._backbone, self._trained = function, backbone, trained
        self._left = Counter(left)
        self._computed = 0
        self._graphs: dict[int, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()  # of memory: one graph computes at a time

    @property
    def graphs(self) -> int:
        """How many it has made."""
        return len(self._graphs)

    def __call__(self, *given: Tensor) -> Tensor:
        n = len(given[0])
        if n not in self._graphs:
            if self._computed < WARM_UP or self._left[n] < WORTH:
                self._computed += 1
                self._left[n] -= 1
                return self._function(*given)
            self._graphs[n] = _Graph(
                self._function, given, self._backbone, self._trained, self._pool
            )
        return self._graphs[n](*given)


class _Graph:
    """A function's kernels, with the memory of what it is given and what it gives."""

    def __init__(
        self,
        function: Function,
        given: Sequence[Tensor],
        backbone: Backbone,
        trained: Sequence[Tensor],
        pool: Any,  # of memory, as torch hands it out
    ) -> None:
        self._backbone, self._trained = backbone, trained
        self._given = [tensor.clone() for tensor in given]
        before = backbone.passes.copy()
        self._graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(backbone.device),  # else a graph is of the first GPU
            # the next images may be read, and their memory pinned, by another thread meanwhile
            torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self._result = function(*self._given)
        self._passes, backbone.passes = backbone.passes - before, before
        self._grads = [parameter.grad for parameter in trained]

    def __call__(self, *given: Tensor) -> Tensor:
        for place, tensor in zip(self._given, given, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        self._backbone.passes.update(self._passes)
        for parameter, grad in zip(self._trained, self._grads, strict=True):
            parameter.grad = grad
        return self._result.clone()
