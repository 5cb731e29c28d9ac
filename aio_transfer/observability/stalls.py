"""What does not move, and nobody has called failed: said once, with what is missing and from whom.

A stall is no error: the caller's cancel scope decides how long to wait. The watch runs only while something is under
way, so an idle engine wakes nobody.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.transfers.submission import Part

__all__ = ("StallWatch",)

_LOGGER: Final = logging.getLogger("aio_transfer.observability.stalls")
_LOOKS: Final = 4
"""How often per period it looks."""


class StallWatch:
    """Reports transfers and counters that have not moved for ``stall_s``."""

    def __init__(
        self,
        stall_s: float,
        parts: Callable[[], Iterable[tuple[int, Part]]],
        counters: Callable[[], Iterable[ImmCounter]],
        label_of: Callable[[bytes], str],
        moved: Callable[[], int],
    ) -> None:
        """Begin asleep.

        :param moved: any number that changes when pieces stop
        """
        self._stall_s = stall_s
        self._parts = parts
        self._counters = counters
        self._label_of = label_of
        self._moved = moved
        self._event = anyio.Event()
        self._asleep = False
        self._told: set[tuple[str, int]] = set()
        self._waits: dict[int, tuple[tuple[int, int], float]] = {}
        self.count = 0
        """Stalls reported so far."""

    def wake(self) -> None:
        """Begin to look: something is under way."""
        if self._asleep:
            self._asleep = False
            self._event.set()

    async def run(self) -> None:
        """Look until cancelled."""
        last_move = anyio.current_time()
        moved = -1
        while True:
            parts = dict(self._parts())
            waits = [counter for counter in self._counters() if counter.waiting]
            if not parts and not waits:
                self._told.clear()
                self._waits.clear()
                self._event = anyio.Event()
                self._asleep = True
                await self._event.wait()
                last_move = anyio.current_time()
            now = anyio.current_time()
            if self._moved() != moved:
                moved, last_move = self._moved(), now
            for number, part in parts.items():
                if now - max(part.since, last_move) >= self._stall_s:
                    self._tell_transfer(number, part)
            self._look_at(waits, now)
            await anyio.sleep(self._stall_s / _LOOKS)

    def _look_at(self, waits: list[ImmCounter], now: float) -> None:
        seen: dict[int, tuple[tuple[int, int], float]] = {}
        for counter in waits:
            mark, since = self._waits.get(counter.id, (None, now))
            current = counter.mark  # looks at what has arrived
            if current != mark:
                seen[counter.id] = (current, now)
                self._told.discard(("counter", counter.id))
                continue
            seen[counter.id] = (current, since)
            if now - since >= self._stall_s:
                self._tell_counter(counter)
        self._waits = seen

    def _tell_transfer(self, number: int, part: Part) -> None:
        if ("transfer", number) in self._told:
            return
        self._told.add(("transfer", number))
        self.count += 1
        transfer = part.transfer
        _LOGGER.warning(
            "%s of %d B to %s has not moved for %g s",
            transfer.operation,
            transfer.nbytes,
            part.peer.label,
            self._stall_s,
            extra={
                "operation": transfer.operation,
                "peer": part.peer.label,
                "missing_nbytes": transfer.nbytes,
                "path": str(transfer.path),
            },
        )

    def _tell_counter(self, counter: ImmCounter) -> None:
        if ("counter", counter.id) in self._told:
            return
        self._told.add(("counter", counter.id))
        self.count += 1
        sources = ", ".join(self._label_of(source) for source in sorted(counter.sources)) or "nobody that promised any"
        _LOGGER.warning(
            "counter %#x still lacks %d counts after %g s without one; they come from %s",
            counter.id,
            counter.missing,
            self._stall_s,
            sources,
            extra={"counter": counter.id, "missing_counts": counter.missing, "sources": sources},
        )
