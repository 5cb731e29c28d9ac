"""What is moved: known to both processes of every library, so it needs nothing but NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REGION_NBYTES: Final = 256 << 20
SEED: Final = 20251


@dataclass(frozen=True, slots=True)
class Work:
    """Batches of chunks.

    :param test: ``"pages"`` (scattered there and here), ``"write"`` (one chunk) or ``"latency"`` (a word each way)
    :param count: chunks per batch
    :param depth: batches under way at once
    """

    test: str
    nbytes: int
    count: int = 1
    depth: int = 1

    @property
    def moved(self) -> int:
        """Bytes per batch."""
        return self.nbytes * self.count


WORKS: Final = (
    Work("pages", 4 << 10, 4096, 2),
    Work("pages", 64 << 10, 1024, 2),
    Work("write", 1 << 20, depth=8),
    Work("write", 16 << 20, depth=8),
    Work("write", 256 << 20, depth=8),
    Work("latency", 8),
)


def chunks(work: Work, end: str) -> NDArray[np.int64]:
    """Return in which order a batch names the chunks of one end: neighbours there are none here."""
    return np.random.default_rng([SEED, end == "source"]).permutation(work.count)


def fill(nbytes: int) -> NDArray[np.uint8]:
    """Return bytes that no two pages have in common; fewer are the beginning of more."""
    words = np.random.default_rng(SEED).integers(0, 2**64, nbytes // 8, np.uint64)
    return words.view(np.uint8)
