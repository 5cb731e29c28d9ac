"""What the model of a random schedule knows: engines, what was submitted to them, and what is to appear."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .claims import claim

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aio_transfer.counters import ImmCounter
    from aio_transfer.engine import TransferEngine
    from aio_transfer.regions import RemoteRegion
    from aio_transfer.transfers import Transfer

    from .memory import Memory

__all__ = ("Actor", "Chunk", "Submitted")


@dataclass(slots=True)
class Chunk:
    """Bytes that are to appear in a target, and count once."""

    offset: int
    data: NDArray[np.uint8]


@dataclass(slots=True)
class Submitted:
    """A transfer and what it promised to one receiver."""

    transfer: Transfer
    sender: Actor
    receiver: Actor
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Actor:
    """One engine of a schedule, and what the model knows of it."""

    engine: TransferEngine
    source: Memory
    target: Memory
    counter: ImmCounter
    remote: RemoteRegion
    used: int = 0
    consumed: int = 0
    promised: int = 0
    open: bool = True
    chunks: list[Chunk] = field(default_factory=list)

    def take(self, nbytes: int) -> int:
        """Return where the next bytes go: no two writes overlap, so the end is known whatever the order."""
        at = self.used
        self.used += nbytes
        return at

    def promise(self, chunks: list[Chunk]) -> None:
        """Note what is to come."""
        self.chunks += chunks
        self.promised += len(chunks)

    def check(self, when: str) -> None:
        """Demand that the counter is at no more than was promised, and at no more than is visible."""
        value = self.counter.value
        claim(value <= self.promised, f"{when}: {value} counts, and {self.promised} chunks were submitted (rule 3)")
        visible = sum(self.target.holds(chunk.offset, chunk.data) for chunk in self.chunks)
        claim(visible >= value, f"{when}: {value} counts, and {visible} chunks are visible (rule 2)")
