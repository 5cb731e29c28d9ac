"""Counter table: all completion counters of one engine, summed over its drivers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from aio_transfer.counters.counter import ImmCounter
from aio_transfer.counters.state import CounterState
from aio_transfer.driver.protocol import SpinningDriver
from aio_transfer.driver.records import PRIVATE_COUNTER_BIT, CounterId
from aio_transfer.errors import BusyError, ProviderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.errors import AioTransferError
    from aio_transfer.runtime.event_loop import EventLoop

__all__ = ("CounterTable",)

_SLOTS: Final = 1 << 16
_GENERATIONS: Final = 1 << 7
_MAX_EARLY: Final = 4096
"""Well-known counters that are not open yet and of which something is remembered."""


class CounterTable:
    """All counters of one engine; the total of a counter is the sum of its drivers' totals."""

    def __init__(
        self,
        loop: EventLoop,
        check: Callable[[], None],
        opened: Iterable[OpenDriver],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin empty.

        :param check: refuses use after close and from elsewhere
        :param on_wait: called when a waiter has to wait
        """
        self.loop = loop
        self._check = check
        opened = tuple(opened)
        self._drivers = tuple(each.driver for each in opened)
        self._arm = self._drivers[0].expect if len(self._drivers) == 1 else self._arm_each
        self.poll: Callable[[CounterId, int], int] = self._read_total
        # With several drivers a count may come by any of them, and busy-polling one would delay the others.
        if len(opened) == 1 and opened[0].capabilities.spins and isinstance(opened[0].driver, SpinningDriver):
            self.poll = opened[0].driver.spin_wait
        self._counters: dict[int, CounterState] = {}
        self._fresh = 0  # slots below it have been used
        self._slots: deque[int] = deque()  # those that are free again
        self._generations: dict[int, int] = {}
        self._early_failures: dict[int, Callable[[], AioTransferError]] = {}
        self._early_sources: dict[int, set[bytes]] = {}
        self._on_wait = on_wait

    def create(self, number: int | None = None, sources: Iterable[bytes] = (), *, guarded: bool = False) -> ImmCounter:
        """Make a private counter, or open a well-known one.

        :param guarded: the caller fails it itself when a peer is lost; see :class:`CounterState`
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
        state = self._counters[number] = CounterState(CounterId(number), guarded=guarded)
        state.sources.update(sources, self._early_sources.pop(number, ()))
        failure = self._early_failures.pop(number, None)
        if failure is not None:
            state.fail(failure)
        try:
            self.refresh(state)
        except BaseException:
            del self._counters[number]
            raise
        return ImmCounter(self, state)

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

    def refresh(self, state: CounterState) -> None:
        """Deliver the present total and arm every driver for the total that the first waiter needs."""
        while True:
            need = state.awaited
            state.deliver(self._arm(state.number, need))
            left = state.awaited
            if left:
                self._on_wait()
            if not left or left == need:  # a driver that had enough has disarmed the counter
                return

    def _read_total(self, number: CounterId, _: int) -> int:
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

    def on_counter_event(self, number: int, _status: int, total: int, _payload: bytes) -> None:
        """Handle a driver's COUNTER event."""
        state = self._counters.get(number)
        if state is None:
            return
        if len(self._drivers) == 1:
            state.deliver(total)
            if not state.queue:
                return
        self.refresh(state)

    def add_source(self, number: int, source: bytes) -> None:
        """Remember that a peer has announced counts for one of our counters."""
        state = self._counters.get(number)
        if state is not None:
            state.sources.add(source)
        elif number < PRIVATE_COUNTER_BIT and (number in self._early_sources or len(self._early_sources) < _MAX_EARLY):
            self._early_sources.setdefault(number, set()).add(source)

    def fail(self, number: int, failure: Callable[[], AioTransferError]) -> None:
        """Poison one counter: counts that were announced for it will not come."""
        state = self._counters.get(number)
        if state is not None:
            self.refresh(state)
            state.fail(failure)
        elif number < PRIVATE_COUNTER_BIT and len(self._early_failures) < _MAX_EARLY:
            self._early_failures[number] = failure  # well-known, and not opened yet: kept, as its counts are

    def fail_source(self, source: bytes, failure: Callable[[], AioTransferError], owed: set[int] | None = None) -> None:
        """Poison every counter that depends on a lost peer, except guarded ones.

        :param owed: only these of them
        """
        depending: list[int] = [
            state.number for state in self._counters.values() if source in state.sources and not state.guarded
        ]
        depending += [number for number, sources in self._early_sources.items() if source in sources]
        for number in depending:
            if owed is None or number in owed:
                self.fail(number, failure)

    def forget(self, state: CounterState) -> None:
        """Drop a counter in every driver, and free its slot."""
        if self._counters.pop(state.number, None) is None:
            return
        for driver in self._drivers:
            driver.expect(state.number, -1)
        if state.number & PRIVATE_COUNTER_BIT:
            self._slots.append(state.number & (_SLOTS - 1))

    def close(self) -> None:
        """Close every counter."""
        for state in tuple(self._counters.values()):
            ImmCounter(self, state).close()

    def awaited(self) -> list[CounterState]:
        """Return the counters with waiters, each with its present total."""
        waiting = [state for state in self._counters.values() if state.queue]
        for state in waiting:
            self.refresh(state)
        return [state for state in waiting if state.queue]

    def __len__(self) -> int:
        """Return the number of open counters."""
        return len(self._counters)

    def __iter__(self) -> Iterator[CounterState]:
        """Iterate over the open counters."""
        return iter(tuple(self._counters.values()))
