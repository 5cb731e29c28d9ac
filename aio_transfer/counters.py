"""Completion counters that can be awaited."""

from __future__ import annotations

import operator
from collections import deque
from typing import TYPE_CHECKING, Protocol

import anyio.lowlevel

from .counting import CounterState, Ticket
from .drivers import PRIVATE_COUNTER_BIT, CounterId
from .errors import BusyError, ClosedError, ProviderError, UsageError, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .drivers import Driver
    from .errors import AioTransferError
    from .loops import Loop

__all__ = ("CounterTable", "ImmCounter")

_SLOTS = 1 << 16
_GENERATIONS = 1 << 7
_MAX_EARLY = 4096
_MAX_COUNT = 1 << 47  # far more than comes, and with what was taken before it fits the 56 bits of the native total


class CounterOwner(Protocol):
    """What a counter asks of its table."""

    loop: Loop
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


class CounterTable:
    """All counters of one engine, summed over its drivers."""

    def __init__(self, loop: Loop, check: Callable[[], None], drivers: Iterable[Driver]) -> None:
        """Begin empty.

        :param check: refuses use after close and from elsewhere
        """
        self.loop = loop
        self._check = check
        self._drivers = tuple(drivers)
        self._arm = self._drivers[0].expect if len(self._drivers) == 1 else self._arm_each
        lingers = getattr(self._drivers[0], "linger", None) if len(self._drivers) == 1 else None
        self.look: Callable[[CounterId, int], int] = lingers or self._look_once
        self._counters: dict[int, ImmCounter] = {}
        self._fresh = 0  # slots below it have been used
        self._slots: deque[int] = deque()  # those that are free again
        self._generations: dict[int, int] = {}
        self._poison: dict[int, Callable[[], AioTransferError]] = {}
        self._early: dict[int, set[bytes]] = {}  # promises for well-known counters that are not open yet
        self.on_wait: Callable[[], None] = lambda: None

    def create(self, number: int | None, sources: Iterable[bytes]) -> ImmCounter:
        """Make a private counter, or open a well-known one.

        :raises UsageError: the id is out of range
        :raises BusyError: a counter of that id is open
        """
        self._check()
        if number is None:
            number = self._take_slot()
        elif not isinstance(number, int) or not 0 <= number < PRIVATE_COUNTER_BIT:
            message = f"a well-known counter id is 0 … {PRIVATE_COUNTER_BIT - 1}, not {number!r}"
            raise UsageError(message)
        elif number in self._counters:
            raise BusyError(f"counter {number:#x}", "using")
        counter = self._counters[number] = ImmCounter(self, CounterId(number))
        counter.sources.update(sources, self._early.pop(number, ()))
        poison = self._poison.pop(number, None)
        if poison is not None:
            counter._state.fail(poison)  # noqa: SLF001 - the table is its other half
        try:
            self.refresh(counter)
        except BaseException:
            del self._counters[number]
            raise
        return counter

    def _take_slot(self) -> int:
        # The slot that has been free for longest: its next generation comes as late as possible.
        if self._fresh < _SLOTS:
            slot, self._fresh = self._fresh, self._fresh + 1
        elif self._slots:
            slot = self._slots.popleft()
        else:
            raise ProviderError("engine.counter", code_name=f"{_SLOTS} counters are open")
        generation = self._generations[slot] = (self._generations.get(slot, -1) + 1) % _GENERATIONS
        return PRIVATE_COUNTER_BIT | generation << 16 | slot

    def refresh(self, counter: ImmCounter) -> None:
        """Deliver the present total and arm every driver so that the next one that matters is told."""
        state = counter._state  # noqa: SLF001
        while True:
            need = state.awaited
            state.deliver(self._arm(counter.id, need))
            left = state.awaited
            if left:
                self.on_wait()
            if not left or left == need:  # a driver that had enough has disarmed the counter
                return

    def _look_once(self, number: CounterId, _: int) -> int:
        return self._arm(number, 0)

    def _arm_each(self, number: CounterId, need: int) -> int:
        """Arm several drivers: the total cannot be reached before one of them has gained its share."""
        counts = [driver.expect(number, 0) for driver in self._drivers]
        total = sum(counts)
        if total < need:
            share = -(-(need - total) // len(counts))
            now = [driver.expect(number, have + share) for driver, have in zip(self._drivers, counts, strict=True)]
            if any(have + share <= reached for have, reached in zip(counts, now, strict=True)):
                return self._arm_each(number, need)
        return total

    def reached(self, number: int, total: int) -> None:
        """Handle a driver's COUNTER event."""
        counter = self._counters.get(number)
        if counter is None:
            return
        if len(self._drivers) == 1:
            counter._state.deliver(total)  # noqa: SLF001 - the table is its other half
            if not counter._state.queue:  # noqa: SLF001
                return
        self.refresh(counter)

    def promise(self, number: int, source: bytes) -> None:
        """Take note that a peer will raise a counter of ours."""
        counter = self._counters.get(number)
        if counter is not None:
            counter.sources.add(source)
        elif number < PRIVATE_COUNTER_BIT and (number in self._early or len(self._early) < _MAX_EARLY):
            self._early.setdefault(number, set()).add(source)

    def fail(self, number: int, failure: Callable[[], AioTransferError]) -> None:
        """Poison one counter: counts promised to it will not come."""
        counter = self._counters.get(number)
        if counter is not None:
            self.refresh(counter)
            counter._state.fail(failure)  # noqa: SLF001
        elif number < PRIVATE_COUNTER_BIT and len(self._poison) < _MAX_EARLY:
            self._poison[number] = failure  # well-known, and not opened yet: kept, as its counts are

    def fail_source(self, source: bytes, failure: Callable[[], AioTransferError], owed: set[int] | None = None) -> None:
        """Poison every counter that depends on a peer, but for guarded ones.

        :param owed: only these of them
        """
        depending: list[int] = [
            counter.id for counter in self._counters.values() if source in counter.sources and not counter.guarded
        ]
        depending += [number for number, sources in self._early.items() if source in sources]
        for number in depending:
            if owed is None or number in owed:
                self.fail(number, failure)

    def forget(self, counter: ImmCounter) -> None:
        """Drop a counter in every driver, and let its slot be used again."""
        if self._counters.pop(counter.id, None) is None:
            return
        for driver in self._drivers:
            driver.expect(counter.id, -1)
        if counter.id & PRIVATE_COUNTER_BIT:
            self._slots.append(counter.id & (_SLOTS - 1))

    def close(self) -> None:
        """Close every counter."""
        for counter in tuple(self._counters.values()):
            counter.close()

    def __iter__(self) -> Iterator[ImmCounter]:
        """Go through the open counters."""
        return iter(tuple(self._counters.values()))
