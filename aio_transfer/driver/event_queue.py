"""Event queue for drivers in Python: counters that peers raise, events for the engine, and an eventfd as doorbell."""

from __future__ import annotations

import os
from contextlib import suppress
from threading import Lock
from typing import Final

from aio_transfer.driver.records import (
    COUNTER_ID_BITS,
    MAX_COUNTER_ID,
    PRIVATE_COUNTER_BIT,
    CounterId,
    Event,
    EventKind,
)

__all__ = ("EventQueue",)

MAX_COUNTERS: Final = 1 << 17
"""Peers choose the ids of well-known counters: counts for more than these are dropped."""


class EventQueue:
    """Counters, events, and an eventfd that is readable while there are events.

    A driver returns :meth:`expect`, :meth:`fileno` and :meth:`take` from its own ``expect``, ``fileno`` and ``drain``.
    All methods may be called from any thread.

    :ivar totals: for ``statistics()``; ``counts`` is kept here, ``writes`` and ``nbytes`` are the driver's
    """

    def __init__(self) -> None:
        """Open the eventfd.

        :raises OSError: the process has no file descriptor left
        """
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # One lock for counters and events: expect() reads the total and arms the threshold in one step, so no count
        # that arrives in between goes unreported (docs/explanation/contract.md, rule 5).
        self._lock = Lock()
        self._counts: dict[int, int] = {}
        self._thresholds: dict[int, int] = {}
        self._events: list[Event] = []
        self.totals = dict.fromkeys(("writes", "nbytes", "counts"), 0)

    def count(self, immediate: int) -> None:
        """Raise the counter named by an immediate that arrived. Its payload must be in place and visible (rule 2)."""
        counter, counts = immediate & MAX_COUNTER_ID, (immediate >> COUNTER_ID_BITS) + 1
        with self._lock:
            if counter not in self._counts and (counter & PRIVATE_COUNTER_BIT or len(self._counts) >= MAX_COUNTERS):
                return  # a private counter that its owner has closed or never created, or one too many
            total = self._counts[counter] = self._counts.get(counter, 0) + counts
            self.totals["counts"] += counts
            if total >= self._thresholds.get(counter, total + 1):
                del self._thresholds[counter]
                self._emit(EventKind.COUNTER, counter, code=total)

    def expect(self, counter: CounterId, counts: int) -> int:
        """Arm, disarm (0) or delete (−1) a counter; return its total."""
        with self._lock:
            total = self._counts.setdefault(counter, 0) if counts >= 0 else self._counts.pop(counter, 0)
            self._thresholds.pop(counter, None)
            if total < counts:
                self._thresholds[counter] = counts
            return total

    def emit(self, kind: EventKind, number: int, status: int = 0, code: int = 0, payload: bytes = b"") -> None:
        """Add an event for the engine."""
        with self._lock:
            self._emit(kind, number, status, code, payload)

    def _emit(self, kind: EventKind, number: int, status: int = 0, code: int = 0, payload: bytes = b"") -> None:
        self._events.append(Event(kind, number, status, code, payload))
        os.eventfd_write(self._fd, 1)

    def ring(self) -> None:
        """Make :meth:`fileno` readable without an event: the driver has work for the next ``drain``."""
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        """Return the eventfd."""
        return self._fd

    def take(self, limit: int) -> list[Event]:
        """Remove and return up to ``limit`` events, oldest first; the eventfd stays readable while any are left."""
        with self._lock:
            taken, self._events = self._events[:limit], self._events[limit:]
            if not self._events:
                with suppress(BlockingIOError):  # it was not readable
                    os.eventfd_read(self._fd)
            return taken

    def __len__(self) -> int:
        """Return the number of events in the queue."""
        return len(self._events)

    def close(self) -> None:
        """Close the eventfd."""
        os.close(self._fd)
