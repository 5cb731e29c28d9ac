"""Barrier state of one membership, without an event loop: its epochs, and the members that have departed.

Two counters serve even and odd epochs. A member can be one epoch ahead of the slowest, and not two: it leaves epoch
k + 1 only when every member has entered it. So a count of epoch k is never taken for one of k + 2.

A member that departs (it left the group, or was lost) blocks every barrier that it did not pass. If it reported k
passed barriers, then every member has entered epoch k - 1, and all of its counts are on their way: that barrier can
still be passed here, though the report may arrive before the counts.

=======================  ==================  ===============================================================
event                    ``entered``         effect
=======================  ==================  ===============================================================
enter                    no                  the other members must be notified
enter                    yes                 nothing: a cancelled wait goes on, and nobody is notified twice
complete                 yes                 the next epoch begins, not entered
member departs           any                 every epoch is blocked, but see below
it passed > ``epoch``    yes                 the present epoch is not blocked
=======================  ==================  ===============================================================

:source: docs/explanation/contract.md, rules 8 and 10
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aio_transfer.errors import AioTransferError

__all__ = ("BarrierState", "Departure", "Notification")


class Departure(enum.Enum):
    """Reason why a member takes no further part."""

    LEFT = "left"
    LOST = "lost"


class Notification(Protocol):
    """A count on its way to another member: a transfer."""

    @property
    def done(self) -> bool:
        """Whether it has stopped."""
        ...

    def exception(self) -> AioTransferError | None:
        """Return why it failed, if it did."""
        ...


class BarrierState:
    """Epochs of one membership, and the members that have departed.

    :ivar epoch: barriers passed
    :ivar entered: whether the other members have been notified that we are in the present epoch
    :ivar departures: members that take no further part, in order of time
    """

    __slots__ = ("_notifications", "_passed", "departures", "entered", "epoch")

    def __init__(self) -> None:
        """Begin before the first barrier, with all members present."""
        self.epoch = 0
        self.entered = False
        self.departures: dict[bytes, Departure] = {}
        self._passed: dict[bytes, int] = {}
        self._notifications: list[tuple[int, Notification]] = []

    @property
    def parity(self) -> int:
        """Index of the counter of the present epoch."""
        return self.epoch % 2

    def enter(self) -> bool:
        """Enter the present epoch.

        :returns: whether the other members have yet to be notified
        """
        if self.entered:
            return False
        self.entered = True
        self._notifications = [one for one in self._notifications if not _is_delivered(one[1])]
        return True

    def add_notification(self, notification: Notification) -> None:
        """Record a count that was sent for the present epoch."""
        self._notifications.append((self.epoch, notification))

    def complete(self) -> None:
        """Pass the present epoch: every member has entered it."""
        self.entered = False
        self.epoch += 1

    def report_passed(self, member: bytes, epochs: int) -> None:
        """Record how many barriers a member has passed of which every other member receives all counts."""
        self._passed[member] = epochs

    def depart(self, member: bytes, departure: Departure) -> None:
        """Record that a member takes no further part. The first reason stands."""
        self.departures.setdefault(member, departure)

    def blocked_by(self) -> bytes | None:
        """Return a member without which the present epoch cannot be passed."""
        for member in self.departures:
            if not (self.entered and self._passed.get(member, 0) > self.epoch):
                return member
        return None

    def confirmed_epochs(self, *, closing: bool) -> int:
        """Return how many barriers we have passed of which every other member receives our count.

        :param closing: the engine closes: a count that is still under way may never arrive
        """
        broken = (
            epoch for epoch, one in self._notifications if (closing if not one.done else one.exception() is not None)
        )
        return min([self.epoch, *broken])


def _is_delivered(notification: Notification) -> bool:
    return notification.done and notification.exception() is None
