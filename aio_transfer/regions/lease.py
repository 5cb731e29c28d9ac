"""Who may still touch a thing, and when it may go: a state machine without an event loop.

It belongs to the engine's thread; nothing here locks.

:source: design.md section 2, rules 7 and 8
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from aio_transfer.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("OPEN", "LeaseState", "Leased")


class LeaseState(enum.Enum):
    """How far a leased thing is on its way out."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN: Final = LeaseState.OPEN
"""By a name of its own: an enum's attribute takes a tenth of what cutting a slice does."""


class Leased:
    """The state machine: open (leases are given) → closing (they only come back) → closed (there are none)."""

    __slots__ = ("__weakref__", "_free", "_leases", "name", "state")

    def __init__(self, name: str) -> None:
        """Begin open, with no lease."""
        self.name = name
        self.state = LeaseState.OPEN
        self._leases = 0
        self._free: list[Callable[[], object]] = []

    @property
    def leases(self) -> int:
        """How many are out."""
        return self._leases

    def lease(self) -> None:
        """CountAnnouncement that the memory stays as it is, until :meth:`release`.

        :raises ClosedError: closing has begun
        """
        if self.state is not OPEN:
            raise ClosedError(self.name)
        self._leases += 1

    def release(self) -> None:
        """Give one lease back; with the last, those who wait in :meth:`when_free` are called."""
        if not self._leases:
            message = f"{self.name}: more leases came back than were given"
            raise RuntimeError(message)  # a defect of ours, and silence would free memory under a NIC
        self._leases -= 1
        if not self._leases and self._free:
            waiting, self._free = self._free, []
            for callback in waiting:
                callback()

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call back once, as soon as no lease is out: now, or from within the last :meth:`release`."""
        if self._leases:
            self._free.append(callback)
        else:
            callback()

    def begin_close(self) -> bool:
        """Give no lease any more. Idempotent.

        :returns: this call was the one that began it
        """
        first = self.state is OPEN
        if first:
            self.state = LeaseState.CLOSING
        return first

    def finish_close(self) -> None:
        """Be closed. Idempotent; legal only when every lease is back."""
        if self._leases:
            message = f"{self.name}: closed with {self._leases} leases out"
            raise RuntimeError(message)
        self.state = LeaseState.CLOSED

    def require_open(self) -> None:
        """Refuse what comes too late.

        :raises ClosedError: closing has begun
        """
        if self.state is not OPEN:
            raise ClosedError(self.name)
