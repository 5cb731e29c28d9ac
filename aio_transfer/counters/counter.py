"""Completion counters that can be awaited."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Protocol

import anyio.lowlevel

from aio_transfer.counters.state import CounterState, Ticket
from aio_transfer.driver.records import CounterId
from aio_transfer.errors import ClosedError, UsageError, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.runtime.event_loop import EventLoop

__all__ = ("ImmCounter",)

_MAX_COUNT = 1 << 47  # far more than comes, and with what was taken before it fits the 56 bits of the native total


class CounterOwner(Protocol):
    """What a counter asks of its table."""

    loop: EventLoop
    look: Callable[[CounterId, int], int]
    """Return the total, or look until it is so high, for as long as the engine was told to spin."""

    def refresh(self, counter: ImmCounter) -> None:
        """Deliver what has arrived, and arm the drivers for the first waiter."""
        ...

    def forget(self, counter: ImmCounter) -> None:
        """Drop it, and what still arrives for it."""
        ...


class ImmCounter:
    """Counts of payloads that have become visible in our memory: one per chunk a peer named.

    It exists from its creation, so a count that comes before anybody waits is kept. When a peer that had promised
    counts cannot send them (it died, closed, or a write of its failed), waiters that need more than has arrived get
    that error, now and later, until :meth:`clear`.

    :ivar id: 24 bits; goes to peers inside a descriptor
    :ivar sources: incarnations of the peers it depends on: those named when it was made, and those that promised
    :ivar guarded: its maker knows better than the table when counts cannot come any more, and fails it then. A barrier:
        a member that has left after its last one owes nothing, though others may still be on their way
    """

    __slots__ = ("__weakref__", "_closed", "_owner", "_state", "guarded", "id", "sources")

    def __init__(self, owner: CounterOwner, number: CounterId) -> None:
        """Begin at zero; use ``engine.counter()``."""
        self._owner = owner
        self._state = CounterState()
        self._closed = False
        self.id = number
        self.sources: set[bytes] = set()
        self.guarded = False

    @property
    def value(self) -> int:
        """Counts that have arrived since it was made, consumed or not.

        :raises ClosedError: it was closed
        """
        self._check()
        self._owner.refresh(self)
        return self._state.value

    @property
    def missing(self) -> int:
        """Counts that the first waiter still needs; 0 when nobody waits."""
        if self._state.queue:
            self._owner.refresh(self)
        return self._state.missing

    @property
    def mark(self) -> tuple[int, int]:
        """Something that changes when counts arrive, and when another waiter is the first."""
        self._owner.refresh(self)
        queue = self._state.queue
        return self._state.value, id(queue[0]) if queue else 0

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self._state.queue)

    async def wait(self, count: int = 1) -> None:
        """Wait for ``count`` arrivals that no earlier wait consumed, and consume them.

        Waiters are served in order of arrival. Once this returns, the payload of every write counted is visible.

        :param count: ≥ 0; with 0 it returns at once
        :raises UsageError: ``count`` is negative
        :raises PeerLostError: a peer that had promised counts died or closed, and too few have arrived
        :raises TransferAbortedError: a promised write failed at its sender, and too few have arrived
        :raises ClosedError: it was closed, before or meanwhile
        :cancellation: nothing is consumed
        """
        count = self._checked(count)
        if count and not self._state.take(count) and not self._look(count):
            await self._queue(count)
        elif self._owner.loop.is_turn_due():
            try:
                await anyio.lowlevel.checkpoint()
            except BaseException:
                self._state.give_back(count)
                if not self._closed:
                    self._owner.refresh(self)  # who waits behind us needs fewer now
                raise

    def _look(self, count: int) -> bool:
        """Take what has come and nobody was told of, if nobody is before us: it saves making a place to park."""
        state = self._state
        if state.queue:
            return False
        state.deliver(self._owner.look(self.id, state.consumed + count))
        return state.take(count)

    async def _queue(self, count: int) -> None:
        state, loop = self._state, self._owner.loop
        waiter = loop.waiter()
        ticket = Ticket(count, waiter.wake)
        state.enqueue(ticket)
        try:
            self._owner.refresh(self)
            _require_hope(state, ticket)
            if not ticket.granted:
                await waiter.wait()
            elif loop.is_turn_due():
                await anyio.lowlevel.checkpoint()
        except BaseException:
            state.withdraw(ticket)
            if not self._closed:
                self._owner.refresh(self)
            raise
        if ticket.failure is not None:
            raise ticket.failure()

    def wait_nowait(self, count: int = 1) -> None:
        """Consume ``count`` arrivals that are there.

        :raises WouldBlock: there are fewer, or others wait before us; nothing was consumed
        """
        if not self._take(self._checked(count)):
            message = f"counter {self.id:#x} has {max(0, self._state.available)} of {count} counts"
            raise WouldBlock(message)

    def clear(self) -> None:
        """Forget a failure: the counts it lacked are promised anew, or not needed any more. Arrivals are kept."""
        self._check()
        self._state.failure = None

    def close(self) -> None:
        """Drop the counter; waiters get :class:`ClosedError`, later arrivals are discarded. Idempotent."""
        self._owner.loop.check("the engine")
        if self._closed:
            return
        self._closed = True
        self._state.fail(lambda: ClosedError(f"counter {self.id:#x}"))
        self._owner.forget(self)

    def _checked(self, count: int) -> int:
        self._check()
        if type(count) is int and 0 <= count <= _MAX_COUNT:
            return count
        try:
            number = operator.index(count)
        except TypeError:
            number = -1
        if not 0 <= number <= _MAX_COUNT:
            raise UsageError(f"cannot wait for {count!r} counts: 0 … 2**47 are possible")
        return number

    def _take(self, count: int) -> bool:
        if count == 0 or self._state.take(count):
            return True
        self._owner.refresh(self)
        if self._state.take(count):
            return True
        if self._state.failure is not None:
            raise self._state.failure()
        return False

    def _check(self) -> None:
        self._owner.loop.check("the engine")
        if self._closed:
            raise ClosedError(f"counter {self.id:#x}")

    def __repr__(self) -> str:
        """Say which, how far, and who waits."""
        return f"<ImmCounter {self.id:#x} value={self._state.value} waiting={self.waiting}>"


def _require_hope(state: CounterState, ticket: Ticket) -> None:
    if state.failure is not None and not ticket.granted:
        raise state.failure()
