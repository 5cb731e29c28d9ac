"""Stall detection: reports once when a transfer or an awaited counter makes no progress.

A stall is no error: the caller's cancel scope decides how long to wait. The watch runs only while something is in
flight, so an idle engine is never woken.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aio_transfer.counters.state import CounterState
    from aio_transfer.counters.table import CounterTable
    from aio_transfer.transfers.submission import InFlight

__all__ = ("StallWatch",)

_LOGGER: Final = logging.getLogger(__name__)
_CHECKS_PER_PERIOD: Final = 4


class StallWatch:
    """Reports transfers and counters that have made no progress for ``stall_s`` seconds.

    :ivar count: stalls reported so far
    """

    def __init__(self, stall_s: float, label_of: Callable[[bytes], str], pieces_stopped: Callable[[], int]) -> None:
        """Begin asleep.

        :param label_of: incarnation of a peer → its label
        :param pieces_stopped: any number that changes when pieces stop
        """
        self._stall_s = stall_s
        self._label_of = label_of
        self._pieces_stopped = pieces_stopped
        self._event = anyio.Event()
        self._asleep = False
        self._reported: set[tuple[str, int]] = set()
        self._waits: dict[int, tuple[tuple[int, int], float]] = {}
        self.count = 0

    def wake(self) -> None:
        """Begin to check: something is in flight."""
        if self._asleep:
            self._asleep = False
            self._event.set()

    async def run(self, in_flight: Callable[[], Mapping[int, InFlight]], counters: CounterTable) -> None:
        """Check until cancelled.

        :param in_flight: returns the batches that drivers have not reported yet
        """
        last_move = anyio.current_time()
        stopped = -1
        while True:
            parts = dict(in_flight())
            waits = counters.awaited()
            if not parts and not waits:
                self._reported.clear()
                self._waits.clear()
                self._event = anyio.Event()
                self._asleep = True
                await self._event.wait()
                last_move = anyio.current_time()
            now = anyio.current_time()
            if self._pieces_stopped() != stopped:
                stopped, last_move = self._pieces_stopped(), now
            for number, part in parts.items():
                if now - max(part.since, last_move) >= self._stall_s:
                    self._report_transfer(number, part)
            self._check_counters(waits, now)
            await anyio.sleep(self._stall_s / _CHECKS_PER_PERIOD)

    def _check_counters(self, waits: list[CounterState], now: float) -> None:
        seen: dict[int, tuple[tuple[int, int], float]] = {}
        for counter in waits:
            mark, since = self._waits.get(counter.number, (None, now))
            current = counter.progress_mark
            if current != mark:
                seen[counter.number] = (current, now)
                self._reported.discard(("counter", counter.number))
                continue
            seen[counter.number] = (current, since)
            if now - since >= self._stall_s:
                self._report_counter(counter)
        self._waits = seen

    def _is_new(self, kind: str, number: int) -> bool:
        if (kind, number) in self._reported:
            return False
        self._reported.add((kind, number))
        self.count += 1
        return True

    def _report_transfer(self, number: int, part: InFlight) -> None:
        if not self._is_new("transfer", number):
            return
        transfer, label = part.transfer, part.connection.label
        _LOGGER.warning(
            "%s of %d B to %s stalled: no progress for %g s",
            transfer.operation,
            transfer.nbytes,
            label,
            self._stall_s,
            extra={
                "operation": transfer.operation,
                "peer": label,
                "missing_nbytes": transfer.nbytes,
                "path": str(transfer.path),
            },
        )

    def _report_counter(self, counter: CounterState) -> None:
        if not self._is_new("counter", counter.number):
            return
        sources = ", ".join(self._label_of(source) for source in sorted(counter.sources)) or "no peer has announced any"
        _LOGGER.warning(
            "counter %#x stalled: %d of %d counts missing for %g s; expected from: %s",
            counter.number,
            counter.missing,
            counter.queue[0].count,
            self._stall_s,
            sources,
            extra={"counter": counter.number, "missing_counts": counter.missing, "sources": sources},
        )
