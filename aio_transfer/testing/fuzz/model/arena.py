"""Arenas: guarded memory of one engine, with a model of the bytes that must, may and must not appear in it."""

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

__all__ = ("ARENA_NBYTES", "Arena", "Chunk", "Registration")

ARENA_NBYTES: Final = 288 << 10
"""Enough for one write that is striped over NICs, and for dozens of small ones."""
_MAX_GAP: Final = 8
_BOTH: Final = Access.REMOTE_READ | Access.REMOTE_WRITE
_NOISE: Final = np.random.default_rng(20260101).integers(0, 256, 2 * ARENA_NBYTES, np.uint8)


@dataclass(slots=True, eq=False)
class Registration:
    """One registration of an arena: the memory stays, its region and descriptor are new each time.

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
    """A range of an arena in which given bytes are to appear; before that, every byte there differs from its new one.

    :ivar settled: whether it arrived has been decided, and nothing of it may change any more
    """

    arena: Arena
    offset: int
    nbytes: int
    settled: bool = False
    _visible: bool = False

    @classmethod
    def forbidden(cls, arena: Arena) -> Chunk:
        """Make a chunk that must not arrive: whatever is written for it changes bytes that must stay."""
        return cls(arena, 0, 0, settled=True)

    @property
    def is_visible(self) -> bool:
        """Whether all of it is there; once it was, it stays."""
        if not self._visible and not self.settled:
            self._visible = self.arena.is_written(self)
        return self._visible

    def settle(self, why: str) -> bool:
        """Decide whether it has arrived, and expect its present bytes from now on.

        :returns: whether all of it has arrived
        :raises ConformanceError: a byte is neither the old nor the new one
        """
        if not self.is_visible and not self.settled:
            self.arena.accept_current(self, why)
        self.settled = True
        return self._visible


class Arena:
    """Memory between guard bytes, and a second copy of all of it as it must look at the end.

    No two chunks overlap, so the end is the same for every order of arrival. The range of a chunk is filled with the
    complement of its bytes, so every byte that is written shows, also a wrong one.
    """

    def __init__(self, engine: TransferEngine, salt: int) -> None:
        """Allocate; :meth:`open` registers."""
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

    async def open(self) -> Registration:
        """Register the memory, and decode the descriptor from bytes, as a peer does."""
        region = await self.engine.register(self.array, access=_BOTH)
        self.registration = Registration(self, region, RemoteRegion.from_bytes(bytes(region.descriptor())))
        return self.registration

    @property
    def is_open(self) -> bool:
        """Whether transfers may be started with it."""
        return self.registration.region._lease.state is LeaseState.OPEN

    # -------------------------------------------------------------------------------------------------------- chunks

    def room_for(self, nbytes: int) -> int:
        """Return how many of ``nbytes`` there is room for."""
        return max(0, min(nbytes, ARENA_NBYTES - self.used - _MAX_GAP))

    def reserve(self, data: NDArray[np.uint8], gap: int = 0) -> Chunk:
        """Reserve a chunk in which ``data`` is to appear; :meth:`room_for` has found that there is enough room.

        :param gap: how many bytes before it stay unused, modulo 8
        """
        at = min(self.used + gap % _MAX_GAP, ARENA_NBYTES - data.nbytes)
        self.used = at + data.nbytes
        self.touched = True
        self.image[at : self.used] = data
        np.invert(data, out=self.array[at : self.used])
        return Chunk(self, at, data.nbytes)

    def reserve_pages(self, rows: NDArray[np.uint8]) -> list[Chunk]:
        """Reserve one chunk per page, side by side."""
        count, nbytes = rows.shape
        at = self.reserve(rows.reshape(-1)).offset
        return [Chunk(self, at + index * nbytes, nbytes) for index in range(count)]

    def is_written(self, chunk: Chunk) -> bool:
        """Return whether all bytes of a chunk have arrived."""
        at, end = chunk.offset, chunk.offset + chunk.nbytes
        if at == end:
            return True
        if self.array[end - 1] != self.image[end - 1]:  # the cheapest test, and most chunks fail it
            return False
        return not (self.array[at:end] != self.image[at:end]).any()

    def accept_current(self, chunk: Chunk, why: str) -> None:
        """Expect the present bytes of a chunk from now on.

        :raises ConformanceError: a byte is neither the old nor the new one
        """
        at, end = chunk.offset, chunk.offset + chunk.nbytes
        now, due = self.array[at:end], self.image[at:end]
        garbage = (now != due) & (now != ~due)
        claim(not garbage.any(), f"{why}: {int(garbage.sum())} of its {chunk.nbytes} B are neither old nor new")
        due[:] = now

    # -------------------------------------------------------------------------------------------------------- leases

    def add_lease(self, transfer: Transfer) -> None:
        """Note that a transfer holds the region."""
        self._leased.append(transfer)

    def check_leases(self, when: str) -> None:
        """Check that exactly the transfers that have not stopped hold a lease."""
        due = 0
        if self._leased:
            self._leased = [transfer for transfer in self._leased if not transfer.done]
            due = len(self._leased)
        has = self.registration.region.leases
        if has != due:
            name = self.registration.region.name
            raise ConformanceError(f"{when}: {has} leases of {name} are out, and {due} transfers use it (rule 7)")

    # ---------------------------------------------------------------------------------------------- between schedules

    def overwrite(self) -> None:
        """Change every byte, as an owner may once the region is closed."""
        self.touched = True
        np.invert(self.array, out=self.array)
        self.image[:] = self.array

    def begin_schedule(self) -> None:
        """Begin another schedule with the present bytes."""
        self.used = 0
        self.touched = False
        self._leased.clear()

    def release_memory(self) -> None:
        """Drop the memory, so that its file descriptor is closed with its engine, not at a later collection."""
        self.whole = self.array = self.image = self._image = _NOISE[:0]
        del self.registration

    def verify(self, when: str) -> None:
        """Compare every byte, guards included, with the model.

        :raises ConformanceError: with the offsets of the first and last difference, and their number
        """
        if (self.whole.view(np.uint64) == self._image.view(np.uint64)).all():
            return
        wrong = np.flatnonzero(self.whole != self._image)
        first, last = int(wrong[0]) - GUARD_NBYTES, int(wrong[-1]) - GUARD_NBYTES
        where = "inside" if first >= 0 and last < ARENA_NBYTES else "OUTSIDE, in the guard bytes,"
        raise ConformanceError(
            f"{when}: {wrong.size} bytes {where} of {self.registration.region.name} are wrong: "
            f"offsets {first} … {last}; "
            f"at the first is {self.whole[wrong[0]]:#04x}, due {self._image[wrong[0]]:#04x}"
        )
