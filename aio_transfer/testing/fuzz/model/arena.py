"""Memory of an engine in a random schedule: what is to appear in it, what has, and what never may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from aio_transfer.driver.records import Access
from aio_transfer.regions.lease import LeaseState
from aio_transfer.regions.region import RemoteRegion
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.guarded_memory import GUARD_NBYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.regions.region import Region
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("ARENA_NBYTES", "Arena", "Chunk", "Opened")

ARENA_NBYTES: Final = 288 << 10
"""Room for one write that is spread over NICs, and for dozens of small ones."""
_MAX_GAP: Final = 8
_BOTH: Final = Access.REMOTE_READ | Access.REMOTE_WRITE
_NOISE: Final = np.random.default_rng(20260101).integers(0, 256, 2 * ARENA_NBYTES, np.uint8)


@dataclass(slots=True, eq=False)
class Opened:
    """One registration of an arena: the memory stays, the region and what peers know of it are new each time.

    :ivar closing: the step at which closing began
    :ivar closed: the step at which it had ended: from there nothing of a peer's may land, or be read
    """

    arena: Arena
    region: Region
    remote: RemoteRegion
    closing: int | None = None
    closed: int | None = None


@dataclass(slots=True, eq=False)
class Chunk:
    """Bytes that are to appear somewhere. Before, each of them is something else.

    :ivar settled: it has been decided whether it came; nothing of it may change any more
    """

    arena: Arena
    offset: int
    nbytes: int
    settled: bool = False
    _visible: bool = False

    @classmethod
    def never(cls, arena: Arena) -> Chunk:
        """Make one that must not come: whatever is written changes bytes that are to stay."""
        return cls(arena, 0, 0, settled=True)

    @property
    def is_visible(self) -> bool:
        """Whether all of it is there; once it was, it stays."""
        if not self._visible and not self.settled:
            self._visible = self.arena.shows(self)
        return self._visible

    def settle(self, why: str) -> bool:
        """Take it as it is, though it may not have come, or not wholly.

        :returns: it has come
        :raises ConformanceError: there are bytes that are neither the old nor the new ones
        """
        if not self.is_visible and not self.settled:
            self.arena.accept(self, why)
        self.settled = True
        return self._visible


class Arena:
    """Guard bytes, memory, guard bytes, and a second copy of how all of that is to look in the end.

    No two chunks overlap, so the end is known whatever the order. The room of a chunk is filled with the complement of
    its bytes: whatever byte is written is seen, and whatever else is written in its place is too.
    """

    def __init__(self, engine: TransferEngine, salt: int) -> None:
        """Allocate; nothing is registered."""
        self.engine = engine
        self.whole: NDArray[np.uint8] = engine.allocate(ARENA_NBYTES + 2 * GUARD_NBYTES)
        start = salt * 977 % (_NOISE.nbytes - self.whole.nbytes)
        self.whole[:] = _NOISE[start : start + self.whole.nbytes]
        self._image = self.whole.copy()
        self.array = self.whole[GUARD_NBYTES:-GUARD_NBYTES]
        self.image = self._image[GUARD_NBYTES:-GUARD_NBYTES]
        self.used = 0
        self.touched = False
        self._leased: list[Transfer] = []

    async def open(self) -> Opened:
        """Register, and describe as a peer sees it: through bytes."""
        region = await self.engine.register(self.array, access=_BOTH)
        self.opened = Opened(self, region, RemoteRegion.from_bytes(bytes(region.descriptor())))
        return self.opened

    @property
    def is_open(self) -> bool:
        """Whether transfers may be started with it."""
        return self.opened.region._lease.state is LeaseState.OPEN

    # -------------------------------------------------------------------------------------------------------- chunks

    def fit(self, nbytes: int) -> int:
        """Return how much of ``nbytes`` there is room for."""
        return max(0, min(nbytes, ARENA_NBYTES - self.used - _MAX_GAP))

    def take(self, data: NDArray[np.uint8], gap: int = 0) -> Chunk:
        """Give out room in which ``data`` is to appear; :meth:`fit` has said that there is enough.

        :param gap: leave a few bytes before it alone
        """
        at = min(self.used + gap % _MAX_GAP, ARENA_NBYTES - data.nbytes)
        self.used = at + data.nbytes
        self.touched = True
        self.image[at : self.used] = data
        np.invert(data, out=self.array[at : self.used])
        return Chunk(self, at, data.nbytes)

    def take_rows(self, rows: NDArray[np.uint8]) -> list[Chunk]:
        """Give out room for equal pages, side by side."""
        count, nbytes = rows.shape
        at = self.take(rows.reshape(-1)).offset
        return [Chunk(self, at + index * nbytes, nbytes) for index in range(count)]

    def shows(self, chunk: Chunk) -> bool:
        """Say whether all of a chunk is there now."""
        at, end = chunk.offset, chunk.offset + chunk.nbytes
        if at == end:
            return True
        if self.array[end - 1] != self.image[end - 1]:  # the cheapest answer, and the commonest
            return False
        return not (self.array[at:end] != self.image[at:end]).any()

    def accept(self, chunk: Chunk, why: str) -> None:
        """Expect from now on what is there.

        :raises ConformanceError: there are bytes that are neither the old nor the new ones
        """
        at, end = chunk.offset, chunk.offset + chunk.nbytes
        now, due = self.array[at:end], self.image[at:end]
        garbage = (now != due) & (now != ~due)
        claim(not garbage.any(), f"{why}: {int(garbage.sum())} of its {chunk.nbytes} B are neither old nor new")
        due[:] = now

    # -------------------------------------------------------------------------------------------------------- leases

    def lease(self, transfer: Transfer) -> None:
        """Note that a transfer holds the region."""
        self._leased.append(transfer)

    def check_leases(self, when: str) -> None:
        """Demand that exactly the transfers that have not stopped hold a lease."""
        due = 0
        if self._leased:
            self._leased = [transfer for transfer in self._leased if not transfer.done]
            due = len(self._leased)
        has = self.opened.region.leases
        if has != due:
            name = self.opened.region.name
            raise ConformanceError(f"{when}: {has} leases of {name} are out, and {due} transfers use it (rule 7)")

    # ------------------------------------------------------------------------------------------------- between times

    def scribble(self) -> None:
        """Change every byte, as an owner may once it has its memory back."""
        self.touched = True
        np.invert(self.array, out=self.array)
        self.image[:] = self.array

    def restart(self) -> None:
        """Begin another schedule with the bytes that are there."""
        self.used = 0
        self.touched = False
        self._leased.clear()

    def drop(self) -> None:
        """Let go of the memory, so that its file descriptor goes with its engine, and not with the next garbage."""
        self.whole = self.array = self.image = self._image = _NOISE[:0]
        del self.opened

    def verify(self, when: str) -> None:
        """Compare every byte, guards included.

        :raises ConformanceError: with the first and last difference, and how many there are
        """
        if (self.whole.view(np.uint64) == self._image.view(np.uint64)).all():
            return
        wrong = np.flatnonzero(self.whole != self._image)
        first, last = int(wrong[0]) - GUARD_NBYTES, int(wrong[-1]) - GUARD_NBYTES
        where = "inside" if first >= 0 and last < ARENA_NBYTES else "OUTSIDE, in the guard bytes,"
        raise ConformanceError(
            f"{when}: {wrong.size} bytes {where} of {self.opened.region.name} are wrong: offsets {first} … {last}; "
            f"at the first is {self.whole[wrong[0]]:#04x}, due {self._image[wrong[0]]:#04x}"
        )
