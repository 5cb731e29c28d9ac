"""``ImmCounter``: a completion counter that can be awaited."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Protocol

import anyio.lowlevel

from aio_transfer.counters.state import Ticket
from aio_transfer.errors import ClosedError, UsageError, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.counters.state import CounterState
    from aio_transfer.driver.records import CounterId
    from aio_transfer.runtime.event_loop import EventLoop

__all__ = ("ImmCounter",)

_MAX_COUNT = 1 << 47
"""The native running total has 56 bits: with what was consumed before, no wait can exceed it."""


class CounterOwner(Protocol):
    """The counter table, as one counter uses it."""

    loop: EventLoop
    poll: Callable[[CounterId, int], int]
    """Return the running total; with ``progress="spin"``, busy-poll up to 100 µs until it reaches a value."""

    def refresh(self, state: CounterState) -> None:
        """Deliver the present total and arm the drivers for the first waiter."""
        ...

    def forget(self, state: CounterState) -> None:
        """Drop the counter, and what still arrives for it."""
        ...


class ImmCounter:
    """Counts of payloads that have become visible in our memory: one per chunk that a peer named.

    It exists from its creation, so a count that arrives before anybody waits is kept. When a peer that had announced
    counts cannot send them (it died, closed, or one of its writes failed), waiters that need more than has arrived get
    that error, now and later, until :meth:`clear`.

    :ivar id: 24 bits; goes to peers inside a descriptor
    """

    __slots__ = ("__weakref__", "_state", "_table", "id")

    def __init__(self, table: CounterOwner, state: CounterState) -> None:
        """Stand for a state of the table; use ``engine.counter()``."""
        self._table = table
        self._state = state
        self.id = state.number

    @property
    def value(self) -> int:
        """Counts that have arrived since its creation, consumed or not.

        :raises ClosedError: the counter was closed
        """
        self._check()
        self._table.refresh(self._state)
        return self._state.value

    @property
    def missing(self) -> int:
        """Counts that the first waiter still needs; 0 when nobody waits."""
        if self._state.queue:
            self._table.refresh(self._state)
        return self._state.missing

    @property
    def waiting(self) -> int:
        """Number of waiting tasks."""
        return len(self._state.queue)

    async def wait(self, count: int = 1) -> None:
        """Wait for ``count`` arrivals that no earlier wait consumed, and consume them.

        Waiters are served in order of arrival. Once this returns, the payload of every write counted is visible.

        :param count: ≥ 0; with 0 it returns at once
        :raises UsageError: ``count`` is negative
        :raises PeerLostError: a peer that had announced counts died or closed, and too few have arrived
        :raises TransferAbortedError: an announced write failed at its sender, and too few have arrived
        :raises ClosedError: the counter was closed, before or meanwhile
        :cancellation: nothing is consumed
        :source: docs/explanation/contract.md, rule 5
        """
        count = self._checked(count)
        if count and not self._state.take(count) and not self._poll(count):
            await self._queue(count)
        elif self._table.loop.is_turn_due():
            try:
                await anyio.lowlevel.checkpoint()
            except BaseException:
                self._state.give_back(count)
                if not self._state.closed:
                    self._table.refresh(self._state)  # the next waiter now needs fewer counts
                raise

    def _poll(self, count: int) -> bool:
        """Take counts that have arrived without an event, if no waiter is queued: it saves parking the task."""
        state = self._state
        if state.queue:
            return False
        state.deliver(self._table.poll(state.number, state.consumed + count))
        return state.take(count)

    async def _queue(self, count: int) -> None:
        state, loop = self._state, self._table.loop
        waiter = loop.waiter()
        ticket = Ticket(count, waiter.wake)
        state.enqueue(ticket)
        try:
            self._table.refresh(state)
            if state.failure is not None and not ticket.granted:
                raise state.failure()  # noqa: TRY301 - the handler below withdraws the ticket
            if not ticket.granted:
                await waiter.wait()
            elif loop.is_turn_due():
                await anyio.lowlevel.checkpoint()
        except BaseException:
            state.withdraw(ticket)
            if not state.closed:
                self._table.refresh(state)
            raise
        if ticket.failure is not None:
            raise ticket.failure()

    def wait_nowait(self, count: int = 1) -> None:
        """Consume ``count`` arrivals that are there.

        :raises WouldBlock: there are fewer, or other tasks wait; nothing was consumed
        """
        if not self._take(self._checked(count)):
            message = f"counter {self.id:#x} has {max(0, self._state.available)} of {count} counts"
            raise WouldBlock(message)

    def clear(self) -> None:
        """Forget a failure: the missing counts are announced anew, or no longer needed. Arrivals are kept."""
        self._check()
        self._state.failure = None

    def close(self) -> None:
        """Drop the counter; waiters get :class:`ClosedError`, later arrivals are discarded. Idempotent."""
        self._table.loop.check("the engine")
        if self._state.closed:
            return
        self._state.closed = True
        self._state.fail(lambda: ClosedError(f"counter {self.id:#x}"))
        self._table.forget(self._state)

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
        self._table.refresh(self._state)
        if self._state.take(count):
            return True
        if self._state.failure is not None:
            raise self._state.failure()
        return False

    def _check(self) -> None:
        self._table.loop.check("the engine")
        if self._state.closed:
            raise ClosedError(f"counter {self.id:#x}")

    def __repr__(self) -> str:
        """Show id, total and number of waiters."""
        return f"<ImmCounter {self.id:#x} value={self._state.value} waiting={self.waiting}>"
