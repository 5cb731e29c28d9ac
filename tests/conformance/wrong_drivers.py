"""Drivers that break the contract on purpose, each in one way: the kit must find it, and name the rule."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from aio_transfer.backends import libfabric
from aio_transfer.backends.native import NativeDriver
from aio_transfer.driver.backend import Backend
from aio_transfer.driver.protocol import LocalMemory
from aio_transfer.driver.records import PIECE, RUN, EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.driver.protocol import RemoteMemory
    from aio_transfer.driver.records import CounterId, RegionNumber, TransferId


def backend(name: str) -> Backend:
    """Return one of these drivers as the backend "wrong"."""
    return Backend(name="wrong", create=globals()[name], options=libfabric.BACKEND.options)


class Wrong(NativeDriver):
    """shm, or libfabric where that has options, with what it posts changed."""

    def __init__(self, **options: object) -> None:
        if "provider" in options:
            super().__init__("libfabric", libfabric.create(**options)._options)
        else:
            super().__init__("shm", options)

    def post(self, transfer: TransferId, runs: Any, pieces: Any) -> bool:
        changed = np.frombuffer(bytes(pieces), PIECE).copy()
        return super().post(transfer, *self.change(np.frombuffer(bytes(runs), RUN).copy(), changed))

    def change(self, runs: Any, pieces: Any) -> tuple[bytes, bytes]:
        return runs.tobytes(), pieces.tobytes()


class DropsTail(Wrong):
    def change(self, runs: Any, pieces: Any) -> tuple[bytes, bytes]:
        pieces["nbytes"][pieces["nbytes"] > 64] -= 1
        return super().change(runs, pieces)


class WritesOneByteMore(Wrong):
    def change(self, runs: Any, pieces: Any) -> tuple[bytes, bytes]:
        pieces["nbytes"][pieces["nbytes"] == 512] += 1
        return super().change(runs, pieces)


class IgnoresOffset(Wrong):
    def change(self, runs: Any, pieces: Any) -> tuple[bytes, bytes]:
        pieces["remote_offset"] &= ~np.uint64(1)
        return super().change(runs, pieces)


class CountsTwice(Wrong):
    def change(self, runs: Any, pieces: Any) -> tuple[bytes, bytes]:
        more = pieces[-1:].copy()
        more["nbytes"] = 0
        run = runs[-1:].copy()
        run["first"], run["count"] = len(pieces), 1
        return super().change(np.concatenate((runs, run)), np.concatenate((pieces, more)))


class CountsTooMuch(Wrong):
    def change(self, runs: Any, pieces: Any) -> tuple[bytes, bytes]:
        pieces["immediate"] += np.uint32(1 << 24)  # each stands for two counts
        return super().change(runs, pieces)


class SkipsEmptyPieces(Wrong):
    def change(self, runs: Any, pieces: Any) -> tuple[bytes, bytes]:
        pieces["flags"][(pieces["nbytes"] == 0) & (pieces["local_addr"] != 0)] = 0
        return super().change(runs, pieces)


class CountsBeforePayload(Wrong):
    """The payload leaves a moment after its counts: long enough to be seen by a receiver on a busy machine."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._held: list[asyncio.TimerHandle] = []

    def post(self, transfer: TransferId, runs: Any, pieces: Any) -> bool:
        payload, runs = np.frombuffer(bytes(pieces), PIECE).copy(), bytes(runs)
        counts = payload.copy()
        counts["nbytes"] = 0
        payload["flags"] = 0
        held = asyncio.get_running_loop().call_later(0.005, super().post, transfer, runs, payload.tobytes())
        self._held.append(held)
        return super().post(transfer, runs, counts.tobytes())

    def deregister(self, region: RegionNumber) -> None:
        for held in self._held:
            held.cancel()  # its memory is about to go
        super().deregister(region)


class SaysDoneTooEarly(Wrong):
    def post(self, transfer: TransferId, runs: Any, pieces: Any) -> bool:
        super().post(transfer, runs, pieces)
        return True


class ForgetsEarlyCounts(Wrong):
    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._known: set[int] = set()

    def expect(self, counter: CounterId, units: int) -> int:
        if counter not in self._known and units >= 0:
            self._known.add(counter)
            super().expect(counter, -1)
        return super().expect(counter, units)


class LosesEvents(Wrong):
    def drain(self, limit: int) -> Sequence[tuple[int, int, int, int, bytes]]:
        return [event for event in super().drain(limit) if event[0] != EventKind.COUNTER]


class LeaksHandles(Wrong):
    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._ours: set[int] = set()

    def register(self, region: RegionNumber, memory: LocalMemory | RemoteMemory) -> bytes:
        if isinstance(memory, LocalMemory):
            self._ours.add(region)
        return super().register(region, memory)

    def deregister(self, region: RegionNumber) -> None:
        super().deregister(region)
        if region in self._ours:
            super().register(region, LocalMemory(addr=4096, nbytes=64, access=type(self).access()))

    @staticmethod
    def access() -> Any:
        from aio_transfer.driver.records import Access

        return Access.LOCAL


class RevivesRegions(Wrong):
    """Deregisters nothing, and says it has."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._ours: set[int] = set()
        self._released: list[int] = []

    def register(self, region: RegionNumber, memory: LocalMemory | RemoteMemory) -> bytes:
        if isinstance(memory, LocalMemory):
            self._ours.add(region)
        return super().register(region, memory)

    def deregister(self, region: RegionNumber) -> None:
        if region not in self._ours:
            return  # a peer's: keep it, so that it is still written
        self._released.append(region)
        super().send(0, 0, b"")  # type: ignore[arg-type] - it fails, and with that there is something to drain

    def drain(self, limit: int) -> Sequence[tuple[int, int, int, int, bytes]]:
        events = list(super().drain(limit))
        while self._released:
            events.append((EventKind.RELEASED, self._released.pop(), 0, 0, b""))
        return events


class LosesFailuresOfEach(Wrong):
    """Reports all transfers of a prepared scatter as complete, also those that go on or have failed."""

    def post_each(self, first: TransferId, runs: Any, pieces: Any) -> list[int]:
        super().post_each(first, runs, pieces)
        return []


class SpinsPastTheTotal(Wrong):
    """Reports the counts that a wait needs, whether they have come or not."""

    def spin_wait(self, counter: CounterId, counts: int) -> int:
        return max(counts, super().spin_wait(counter, counts))
