"""Random numbers: every purpose has a generator of its own, derived from the run's seed.

A draw for one purpose never moves another, and nothing depends on what ran before in the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed from (seed, purpose) by SHA-256."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, such as 'adapter' or 'shuffle'."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose))


@contextmanager
def seeded_torch(seed: int, purpose: str, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, and give their states back."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, purpose))
        yield
