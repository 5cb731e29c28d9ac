"""Lease counting: a resource is freed only after its last user released it.

A state machine without an event loop. It belongs to the engine's thread; nothing here locks.

:source: docs/explanation/contract.md, rules 7 and 8
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from aio_transfer.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("OPEN", "LeaseCounter", "LeaseState")


class LeaseState(enum.Enum):
    """State of a leased resource."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN: Final = LeaseState.OPEN
"""A module name of its own: reading an enum's attribute takes a tenth of the time that slicing a region does."""


class LeaseCounter:
    """Leases of one resource: open (leases are given) → closing (they only come back) → closed (there are none).

    :ivar name: the resource, for messages
    """

    __slots__ = ("_count", "_on_free", "name", "state")

    def __init__(self, name: str) -> None:
        """Begin open, without leases."""
        self.name = name
        self.state = LeaseState.OPEN
        self._count = 0
        self._on_free: list[Callable[[], object]] = []

    def __len__(self) -> int:
        """Return the number of leases that are out."""
        return self._count

    def __bool__(self) -> bool:
        """Return whether any lease is out."""
        return self._count > 0

    def acquire(self) -> None:
        """Take a lease: the resource stays as it is until :meth:`release`.

        :raises ClosedError: closing has begun
        """
        if self.state is not OPEN:
            raise ClosedError(self.name)
        self._count += 1

    def release(self) -> None:
        """Give one lease back; the last one runs the callbacks of :meth:`when_free`."""
        if not self._count:
            message = f"{self.name}: more leases were released than acquired"
            raise RuntimeError(message)  # a defect of ours, and silence would free memory under a NIC
        self._count -= 1
        if not self._count and self._on_free:
            waiting, self._on_free = self._on_free, []
            for callback in waiting:
                callback()

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call back once, as soon as no lease is out: now, or from within the last :meth:`release`."""
        if self._count:
            self._on_free.append(callback)
        else:
            callback()

    def begin_close(self) -> bool:
        """Give no more leases. Idempotent.

        :returns: whether this call was the one that began it
        """
        first = self.state is OPEN
        if first:
            self.state = LeaseState.CLOSING
        return first

    def finish_close(self) -> None:
        """Become closed. Idempotent; legal only when no lease is out."""
        if self._count:
            message = f"{self.name}: closed with {self._count} leases out"
            raise RuntimeError(message)
        self.state = LeaseState.CLOSED

    def require_open(self) -> None:
        """Refuse use after closing has begun.

        :raises ClosedError: closing has begun
        """
        if self.state is not OPEN:
            raise ClosedError(self.name)
