"""Count announcements: a sender names the counters it will raise, so that its loss can fail their waiters.

Before its first write to a counter of a peer, an engine announces the counter over the control connection. If counts
that were announced cannot come, because a write failed or the peer is lost, the counter is poisoned: a waiter gets an
error instead of waiting for ever.

:source: docs/explanation/contract.md, rule 8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from aio_transfer.control.codec import clip
from aio_transfer.control.frames import Abort, CountAnnouncement
from aio_transfer.errors import PeerLostError, TransferAbortedError

if TYPE_CHECKING:
    from aio_transfer.counters.table import CounterTable
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_manager import ConnectionManager

__all__ = ("AnnouncedCounts", "CountAnnouncements")

AnnouncedCounts: TypeAlias = tuple[tuple[int, int], ...]
"""The peer's counters that a batch raises, each with its number of counts."""

_Fds: TypeAlias = tuple[int, ...]


class CountAnnouncements:
    """Announced counts of one engine, in both directions."""

    def __init__(self, connections: ConnectionManager, counters: CounterTable) -> None:
        """Begin with none."""
        self._connections = connections
        self._counters = counters

    def announce(self, connection: Connection, announced: AnnouncedCounts) -> None:
        """Announce counters to a peer, before anything is written. Each is announced once per connection."""
        for counter, _ in announced:
            if counter not in connection.promised:
                connection.promised.add(counter)
                self._connections.send_frame(connection, CountAnnouncement([counter]))

    def abort(self, connection: Connection, announced: AnnouncedCounts, operation: str, reason: str) -> None:
        """Notify a peer that announced counts will not come."""
        if connection.is_up:
            for counter, counts in announced:
                abort = Abort(counter=counter, operation=operation, reason=clip(reason), counts=counts)
                self._connections.send_frame(connection, abort)

    def on_announcement(self, connection: Connection, frame: CountAnnouncement, _: _Fds) -> None:
        """Handle a peer's announcement."""
        connection.owed.update(frame.counters)
        for number in frame.counters:
            self._counters.add_source(number, connection.incarnation)

    def on_abort(self, connection: Connection, frame: Abort, _: _Fds) -> None:
        """Poison a counter: a peer cannot send what it announced."""
        label = connection.label
        operation = f"{frame.operation} that announced {frame.counts} counts"
        self._counters.fail(frame.counter, lambda: TransferAbortedError(operation, frame.reason, peer=label))

    def on_fenced(self, connection: Connection) -> None:
        """Poison the counters that depend on a peer that is gone: all that it had sent has been counted."""
        label, reason = connection.label, connection.reason
        # Where it has connected again, only what it announced over this connection is lost.
        owed = connection.owed if connection.incarnation in self._connections.peers else None
        self._counters.fail_source(
            connection.incarnation, lambda: PeerLostError(label, reason, operation="a counter wait"), owed
        )
