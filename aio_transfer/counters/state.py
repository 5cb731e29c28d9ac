"""Counter state: the arrivals of one completion counter and its queue of waiters, without an event loop.

Counts arrive as a running total. Waiting is a FIFO semaphore: the first waiter takes its n counts before the second
gets any, and a withdrawn waiter takes none.

:source: docs/explanation/contract.md, rules 3, 4, 5 and 8
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msgspec import Struct, field

from aio_transfer.driver.records import CounterId

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.errors import AioTransferError

__all__ = ("CounterState", "Ticket")


class Ticket(Struct, eq=False):
    """One waiter in the queue.

    :param count: how many counts it takes
    :param wake: called once, when the counts are granted or the wait has failed
    """

    count: int
    wake: Callable[[], None]
    granted: bool = False
    failure: Callable[[], AioTransferError] | None = None


class CounterState(Struct, eq=False):
    """Running total of one counter, and the queue of waiters for parts of it.

    :param sources: incarnations of the peers it depends on: named at its creation, or known by their announcements
    :param guarded: excluded from automatic failure on peer loss, because its owner fails it itself. A barrier needs
        that: a member that left after its last barrier owes nothing, though other members may still be on their way
    """

    number: CounterId = CounterId(0)
    value: int = 0
    consumed: int = 0
    failure: Callable[[], AioTransferError] | None = None
    queue: deque[Ticket] = field(default_factory=deque)
    sources: set[bytes] = field(default_factory=set)
    guarded: bool = False
    closed: bool = False

    @property
    def available(self) -> int:
        """Counts that no wait has consumed."""
        return self.value - self.consumed

    @property
    def awaited(self) -> int:
        """The total at which the first waiter is granted; 0 when nobody waits."""
        return self.consumed + self.queue[0].count if self.queue else 0

    @property
    def missing(self) -> int:
        """Counts that the first waiter still needs."""
        return max(0, self.queue[0].count - self.available) if self.queue else 0

    @property
    def progress_mark(self) -> tuple[int, int]:
        """A value that changes when counts arrive, and when another waiter becomes the first."""
        return self.value, id(self.queue[0]) if self.queue else 0

    def take(self, count: int) -> bool:
        """Consume at once, if no waiter is queued and enough has arrived."""
        if self.queue or self.value - self.consumed < count:
            return False
        self.consumed += count
        return True

    def enqueue(self, ticket: Ticket) -> None:
        """Append a waiter; the caller has tried :meth:`take`."""
        self.queue.append(ticket)

    def deliver(self, total: int) -> None:
        """Set the running total and wake the waiters it satisfies. Totals may be repeated, and never fall."""
        if total > self.value:  # noqa: PLR1730 - per arrival, and a call of max() takes five times as long
            self.value = total
        queue = self.queue
        while queue and queue[0].count <= self.value - self.consumed:
            ticket = queue.popleft()
            self.consumed += ticket.count
            ticket.granted = True
            ticket.wake()

    def give_back(self, count: int) -> None:
        """Undo a :meth:`take`."""
        self.consumed -= count
        self.deliver(self.value)

    def withdraw(self, ticket: Ticket) -> None:
        """Undo a wait that was cancelled: in the queue, or after its grant and before its task ran."""
        if ticket.granted:
            ticket.granted = False
            self.give_back(ticket.count)
            return
        if ticket in self.queue:
            self.queue.remove(ticket)
        self.deliver(self.value)

    def fail(self, failure: Callable[[], AioTransferError]) -> None:
        """Wake every waiter with an error: their counts were announced by a peer that cannot send them.

        Counts that have arrived stay; later waits that they satisfy succeed.
        """
        self.failure = failure
        while self.queue:
            ticket = self.queue.popleft()
            ticket.failure = failure
            ticket.wake()
