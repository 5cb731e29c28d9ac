"""Counter table: all completion counters of one engine, summed over its drivers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from aio_transfer.counters.counter import ImmCounter
from aio_transfer.driver.records import PRIVATE_COUNTER_BIT, CounterId
from aio_transfer.errors import BusyError, ProviderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aio_transfer.driver.protocol import Driver
    from aio_transfer.errors import AioTransferError
    from aio_transfer.runtime.event_loop import EventLoop

__all__ = ("CounterTable",)

_SLOTS = 1 << 16
_GENERATIONS = 1 << 7
_MAX_EARLY = 4096


class CounterTable:
    """All counters of one engine, summed over its drivers."""

    def __init__(self, loop: EventLoop, check: Callable[[], None], drivers: Iterable[Driver]) -> None:
        """Begin empty.

        :param check: refuses use after close and from elsewhere
        """
        self.loop = loop
        self._check = check
        self._drivers = tuple(drivers)
        self._arm = self._drivers[0].expect if len(self._drivers) == 1 else self._arm_each
        lingers = getattr(self._drivers[0], "spin_wait", None) if len(self._drivers) == 1 else None
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
