"""Guarded memory: a region between guard bytes (canaries), so that writes outside the target are detected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from aio_transfer.driver.records import Access
from aio_transfer.regions.region import RemoteRegion
from aio_transfer.testing.assertions import ConformanceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.regions.region import Region

__all__ = ("GUARD_NBYTES", "Memory", "forget", "random_bytes", "registered")

GUARD_NBYTES: Final = 4096 + 64
"""Guard bytes on each side: more than a page, so that the region does not begin at a page boundary."""
_BOTH: Final = Access.REMOTE_READ | Access.REMOTE_WRITE
_OPENED: Final[dict[TransferEngine, list[Memory]]] = {}


class Memory:
    """A region between guard bytes, and a model of the bytes that all of it should hold.

    :ivar array: the region's bytes
    :ivar region: registers exactly those
    """

    def __init__(self, whole: NDArray[np.uint8], region: Region) -> None:
        """Begin with a model of the present bytes; use :meth:`open`."""
        self._whole = whole
        self._model = whole.copy()
        self.nbytes = whole.nbytes - 2 * GUARD_NBYTES
        self.array = whole[GUARD_NBYTES : GUARD_NBYTES + self.nbytes]
        self.region = region

    @classmethod
    async def open(
        cls,
        engine: TransferEngine,
        nbytes: int,
        rng: np.random.Generator,
        *,
        access: Access = _BOTH,
        owner: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Allocate, fill with random bytes, and register.

        :param owner: memory to use instead of ``engine.allocate``'s, two guards longer than ``nbytes``
        """
        whole: NDArray[np.uint8] = engine.allocate(nbytes + 2 * GUARD_NBYTES) if owner is None else owner
        whole[:] = random_bytes(rng, whole.nbytes)
        region = await engine.register(whole[GUARD_NBYTES : GUARD_NBYTES + nbytes], access=access)
        memory = cls(whole, region)
        _OPENED.setdefault(engine, []).append(memory)
        return memory

    def remote(self, counter: ImmCounter | int | None = None) -> RemoteRegion:
        """Return the region as a peer gets it: decoded from the bytes of its descriptor."""
        return RemoteRegion.from_bytes(bytes(self.region.descriptor(counter)))

    def expect(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Expect ``data`` at ``offset`` from now on."""
        at = GUARD_NBYTES + offset
        self._model[at : at + data.nbytes] = data

    def fill(self, data: NDArray[np.uint8] | int) -> None:
        """Overwrite the region, and expect that."""
        self.array[:] = data
        self._model[GUARD_NBYTES : GUARD_NBYTES + self.nbytes] = self.array

    def holds(self, offset: int, data: NDArray[np.uint8]) -> bool:
        """Return whether ``data`` is at ``offset`` now."""
        return bool(np.array_equal(self.array[offset : offset + data.nbytes], data))

    def drop(self) -> None:
        """Drop the arrays, after the region is closed, so that memory the caller provided can be closed, too."""
        self._whole = self._model = self.array = np.empty(0, np.uint8)

    def verify(self, when: str = "") -> None:
        """Compare every byte, guards included, with the model.

        :raises ConformanceError: with the offsets of the first and last difference, and their number
        """
        if np.array_equal(self._whole, self._model):
            return
        wrong = np.flatnonzero(self._whole != self._model)
        first, last = int(wrong[0]) - GUARD_NBYTES, int(wrong[-1]) - GUARD_NBYTES
        where = "inside" if first >= 0 and last < self.nbytes else "OUTSIDE, in the guard bytes,"
        raise ConformanceError(
            f"{wrong.size} bytes {where} of {self.region.name} ({self.nbytes} B) are wrong{when and ' '}{when}: "
            f"offsets {first} … {last}; at the first is {self._whole[wrong[0]]:#04x}, due {self._model[wrong[0]]:#04x}"
        )


def random_bytes(rng: np.random.Generator, nbytes: int) -> NDArray[np.uint8]:
    """Return random bytes: a pattern that does not repeat reveals a copy from a wrong place."""
    found: NDArray[Any] = np.frombuffer(rng.bytes(nbytes), np.uint8)
    return found


def registered(engine: TransferEngine) -> list[Memory]:
    """Return the memories that :meth:`Memory.open` has opened on an engine."""
    return _OPENED.get(engine, [])


def forget(engine: TransferEngine | None = None) -> None:
    """Drop the memories of an engine, or of all engines: they hold the engine and its file descriptors."""
    if engine is None:
        _OPENED.clear()
    else:
        _OPENED.pop(engine, None)
