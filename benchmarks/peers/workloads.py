"""Workloads, which both processes of every library know. Imports only NumPy, for their environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REGION_NBYTES: Final = 256 << 20
SEED: Final = 20251


@dataclass(frozen=True, slots=True)
class Workload:
    """Batches of chunks.

    :param test: ``"pages"`` (scattered on both sides), ``"write"`` (one chunk) or ``"latency"`` (a word each way)
    :param count: chunks per batch
    :param depth: batches in flight at once
    """

    test: str
    nbytes: int
    count: int = 1
    depth: int = 1

    @property
    def moved(self) -> int:
        """Bytes per batch."""
        return self.nbytes * self.count


WORKLOADS: Final = (
    Workload("pages", 4 << 10, 4096, 2),
    Workload("pages", 64 << 10, 1024, 2),
    Workload("write", 1 << 20, depth=8),
    Workload("write", 16 << 20, depth=8),
    Workload("write", 256 << 20, depth=8),
    Workload("latency", 8),
)


def chunk_order(work: Workload, side: str) -> NDArray[np.int64]:
    """Return the order of the chunks on one side: neighbours on one side are not neighbours on the other."""
    return np.random.default_rng([SEED, side == "source"]).permutation(work.count)


def random_bytes(nbytes: int) -> NDArray[np.uint8]:
    """Return pseudo-random bytes; fewer of them are a prefix of more."""
    words = np.random.default_rng(SEED).integers(0, 2**64, nbytes // 8, np.uint64)
    return words.view(np.uint8)
