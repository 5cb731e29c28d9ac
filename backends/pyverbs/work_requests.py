"""What is posted: a batch of runs, each of pieces to one region of one peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aio_transfer.driver.records import PIECE_STRUCT, EventKind, PieceFlag

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("PostedBatch", "Remote", "Run", "parts_of")


@dataclass(slots=True, eq=False)
class Remote:
    """A peer's region, as its owner names it."""

    peer: int
    region: int
    rkey: int
    addr: int
    stale: bool = False


@dataclass(slots=True, eq=False)
class PostedBatch:
    """How many of its runs have not stopped, the event when none is left, and the first fault."""

    number: int
    left: int
    end: EventKind = EventKind.TRANSFER
    fault: tuple[int, int, bytes] = (0, 0, b"")


@dataclass(slots=True, eq=False)
class Run:
    """Parts that are not posted yet, and how many are under way; −1 once the batch knows that it has stopped.

    :ivar memory: of a message, which is freed with it
    """

    batch: PostedBatch
    op: int
    remote: Remote
    lkey: int
    parts: Iterator[tuple[int, int, int, int | None]]
    memory: object = None
    flying: int = 0
    posted: bool = False

    def stop(self, status: int, code: int = 0, words: str = "") -> None:
        """Post nothing more of it."""
        self.posted = True
        if not self.batch.fault[0]:  # the first one; the others follow from it
            self.batch.fault = int(status), code, words.encode()

    def settle(self) -> bool:
        """Say, once, that it has stopped as the last of its batch."""
        if not self.posted or self.flying:
            return False
        self.flying = -1
        self.batch.left -= 1
        return not self.batch.left


def parts_of(pieces: bytes, limit: int) -> Iterator[tuple[int, int, int, int | None]]:
    """Cut pieces as the port demands: address, offset, size, and with the last the immediate.

    A pair carries requests out in order, so the other parts are in place when it counts.
    """
    for addr, offset, nbytes, immediate, flags in PIECE_STRUCT.iter_unpack(pieces):
        last = max(0, nbytes - 1) // limit * limit
        for at in range(0, last, limit):
            yield addr + at, offset + at, limit, None
        yield addr + last, offset + last, nbytes - last, immediate if flags & PieceFlag.IMMEDIATE else None
