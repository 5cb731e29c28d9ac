"""Mutants: deliberate bugs, each of which breaks one rule; the random schedules must catch every one.

Mutants of the data plane are switches of the simulated fabric; the others replace a method of the engine or the driver,
and work on every native backend.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import numpy as np

from aio_transfer.backends.native import NativeDriver
from aio_transfer.counters.table import CounterTable
from aio_transfer.driver.records import PIECE, PRIVATE_COUNTER_BIT, EventKind
from aio_transfer.groups.group import PeerGroup
from aio_transfer.transfers import striping
from aio_transfer.transfers.announcements import CountAnnouncements
from aio_transfer.transfers.routes import RouteTable
from aio_transfer.transfers.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ("MUTANTS", "applied")


_POST: Final = NativeDriver.post
_DRAIN: Final = NativeDriver.drain
_EXPECT: Final = NativeDriver.expect


def counts_off_by_one() -> AbstractContextManager[Any]:
    """A striped operation that counts several chunks at once counts one too few."""
    right = striping.immediate

    def short(counter: int, counts: int = 1) -> int:
        return right(counter, counts - (counts > 1))

    return mock.patch.object(striping, "immediate", short)


def stripe_counted_early() -> AbstractContextManager[Any]:
    """A chunk in several pieces is counted when its last run has stopped, not when all have."""
    right = striping.counts

    def early(*args: Any, after: int, **options: Any) -> Any:
        return right(*args, after=1 if after else 0, **options)

    return mock.patch.object(striping, "counts", early)


def stripe_counted_by_pieces() -> AbstractContextManager[Any]:
    """Every piece of a chunk counts, besides the chunk itself."""
    right = striping.tag

    def tag(pieces: int, counter: int | None) -> int:
        return right(1, counter)

    return mock.patch.object(striping, "tag", tag)


def stripe_tail_dropped() -> AbstractContextManager[Any]:
    """The last byte of a chunk in several pieces is not sent."""
    right = striping.bounds

    def short(nbytes: int, count: int, grain: int) -> Any:
        places = right(nbytes, count, grain)
        places[-1] -= np.uint64(1)
        return places

    return mock.patch.object(striping, "bounds", short)


def empty_page_not_counted() -> AbstractContextManager[Any]:
    """A page without bytes raises no counter."""

    def post(self: NativeDriver, transfer: Any, runs: Any, pieces: Any) -> bool:
        changed = np.frombuffer(bytes(pieces), PIECE).copy()
        changed["flags"][(changed["nbytes"] == 0) & (changed["local_addr"] != 0)] = 0
        return _POST(self, transfer, runs, changed)

    return mock.patch.object(NativeDriver, "post", post)


def barrier_without_epoch() -> AbstractContextManager[Any]:
    """A member that continues a cancelled barrier announces it again, and others take that for its next epoch."""
    right = PeerGroup.barrier

    async def barrier(self: PeerGroup) -> None:
        self._membership.barrier.entered = False
        await right(self)

    return mock.patch.object(PeerGroup, "barrier", barrier)


def early_count_dropped() -> AbstractContextManager[Any]:
    """Counts that arrive before the first wait on their counter are dropped."""

    def expect(self: NativeDriver, counter: Any, units: int) -> int:
        seen = self.__dict__.setdefault("seen", set())
        if units > 0 and counter not in seen:
            seen.add(counter)
            before = _EXPECT(self, counter, 0)
            if before:
                _EXPECT(self, counter, -1)
        return _EXPECT(self, counter, units)

    return mock.patch.object(NativeDriver, "expect", expect)


def lease_released_on_cancel() -> AbstractContextManager[Any]:
    """A cancelled await releases the lease while the transfer goes on."""
    right = Transfer.wait

    async def wait(self: Transfer) -> None:
        try:
            await right(self)
        except BaseException:
            leases, self._leases = self._leases, ()
            for leased in leases:
                leased.release()
            raise

    return mock.patch.object(Transfer, "wait", wait)


def counter_id_reused() -> AbstractContextManager[Any]:
    """The slot of a closed counter is reused at once, in the same generation."""

    right = CounterTable._take_slot

    def take_slot(self: CounterTable) -> int:
        return PRIVATE_COUNTER_BIT | self._slots.pop() if self._slots else right(self)

    return mock.patch.object(CounterTable, "_take_slot", take_slot)


def poison_not_delivered() -> AbstractContextManager[Any]:
    """The receiver does not learn that an announced count cannot arrive."""
    return mock.patch.object(CountAnnouncements, "abort", lambda *_: None)


def ring_overflow_loses_an_event() -> AbstractContextManager[Any]:
    """Of more than eight completions at once, one is lost."""

    def drain(self: NativeDriver, limit: int) -> Any:
        events = list(_DRAIN(self, limit))
        done = [event for event in events if event[0] == EventKind.TRANSFER]
        if len(done) > 8:
            events.remove(done[-1])
        return events

    return mock.patch.object(NativeDriver, "drain", drain)


def stale_import_kept() -> AbstractContextManager[Any]:
    """The import of a region that its owner has closed is kept."""
    return mock.patch.object(RouteTable, "on_revoked", lambda *_: None)


def nothing() -> AbstractContextManager[Any]:
    """No patch: the bug is a switch of the fabric."""
    return contextlib.nullcontext()


MUTANTS: Final[Mapping[str, tuple[str, Callable[[], AbstractContextManager[Any]]]]] = {
    "count before payload": ("count_before_payload", nothing),
    "weight off by one": ("", counts_off_by_one),
    "stripe counted before all pieces are there": ("", stripe_counted_early),
    "stripe counted by every piece": ("", stripe_counted_by_pieces),
    "barrier without epoch": ("", barrier_without_epoch),
    "counter dropped when early": ("", early_count_dropped),
    "error before siblings stop": ("error_before_stop", nothing),
    "lease released on cancel": ("", lease_released_on_cancel),
    "tail bytes of a stripe dropped": ("", stripe_tail_dropped),
    "zero-length page not counted": ("", empty_page_not_counted),
    "counter id reused": ("", counter_id_reused),
    "poison not delivered": ("", poison_not_delivered),
    "ring overflow loses an event": ("", ring_overflow_loses_an_event),
    "stale descriptor accepted": ("accept_stale", stale_import_kept),
    "lost peer not fenced": ("skip_fence", nothing),
}
"""By name: the fabric's switch, and the patch."""


@contextlib.contextmanager
def applied(name: str) -> Iterator[str]:
    """Apply a mutant; yields the fabric's switch for it."""
    switch, patch = MUTANTS[name]
    with patch():
        yield switch
