"""What happens below and across, brought to whom it concerns: driver events and peers' frames."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from aio_transfer.control.frames import (
    Abort,
    CountAnnouncement,
    GrantReply,
    GrantRequest,
    GroupJoin,
    GroupLeave,
    Message,
    MessageAck,
    Revoked,
)
from aio_transfer.driver.records import EventKind
from aio_transfer.errors import PeerLostError, TransferAbortedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.control.frames import Frame
    from aio_transfer.counters.table import CounterTable
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.groups.membership import MembershipTable
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.peers.messages import Messenger
    from aio_transfer.regions.region_registry import RegionRegistry
    from aio_transfer.runtime.event_loop import EventLoop
    from aio_transfer.transfers.submission import Submission

__all__ = ("EventRouter",)

_LOGGER: Final = logging.getLogger(__name__)

# As plain ints, since they are compared for every event.
_COUNTER: Final = int(EventKind.COUNTER)
_TRANSFER: Final = int(EventKind.TRANSFER)
_DRAIN_LIMIT: Final = 256
"""Events handled per turn of the loop: a flood must not starve other tasks."""


class EventRouter:
    """Between those who report and those who keep state. Its methods are called from the engine's loop."""

    def __init__(self, loop: EventLoop) -> None:
        """Begin without anybody to report to; see :meth:`attach`."""
        self._loop = loop
        self._watched: dict[str, int] = {}

    def attach(  # noqa: PLR0913 - everybody who listens
        self,
        *,
        connections: ConnectionManager,
        poster: Submission,
        counters: CounterTable,
        registry: RegionRegistry,
        messenger: Messenger,
        groups: MembershipTable,
        close: Callable[[], None],
    ) -> None:
        """Say who listens.

        :param close: begins to close the engine
        """
        self._close = close
        self._connections = connections
        self._poster = poster
        self._counters = counters
        self._registry = registry
        self._messenger = messenger
        self._groups = groups

    def watch(self, one: OpenDriver) -> None:
        """Handle a driver's events from now on."""
        fd = self._watched[one.name] = one.driver.fileno()
        self._loop.watch(fd, partial(self._on_ready, one))

    def unwatch(self, one: OpenDriver) -> None:
        """Stop; before the driver is closed. Idempotent."""
        fd = self._watched.pop(one.name, None)
        if fd is not None:
            self._loop.unwatch(fd)

    def _on_ready(self, one: OpenDriver) -> None:
        if one.name not in self._watched:
            return
        try:
            events = one.driver.drain(_DRAIN_LIMIT)
        except Exception:
            # Nobody knows what it still moves, and its fd may stay readable for ever: only closing it is safe.
            _LOGGER.exception("the %s driver failed, and its engine closes", one.name)
            self.unwatch(one)
            self._close()
            return
        for kind, number, status, code, payload in events:
            if kind == _COUNTER:  # what most loops wake up for
                self._counters.reached(number, code)
            elif kind == _TRANSFER:
                if not self._poster.on_transfer_event(number, status, code, payload):
                    self._messenger.on_sent(number, payload.decode(errors="replace") or "the transport failed")
            else:
                self._on_event(kind, number, payload)
        if len(events) == _DRAIN_LIMIT:
            self._loop.call_soon(lambda: self._on_ready(one))

    def _on_event(self, kind: int, number: int, payload: bytes) -> None:
        match kind:
            case EventKind.MESSAGE:
                peer = self._connections.find(number)
                if peer is not None:
                    self._messenger.on_message(peer, payload)
            case EventKind.RELEASED:
                self._registry.on_released(number)
            case EventKind.FENCED:
                self._connections.on_fenced_event(number)
            case EventKind.PEER_FAILED:
                self._connections.on_failed_event(number, payload.decode(errors="replace"))
            case EventKind.SENT:
                self._messenger.on_sent(number)

    def on_frame(self, peer: Connection, frame: Frame, fds: tuple[int, ...]) -> None:  # noqa: C901 - a table
        """Handle a frame of a connected peer."""
        match frame:
            case GrantReply():
                answer = peer.grants.requests.pop(frame.request, None)
                if answer is not None:
                    answer(frame, fds)
            case GrantRequest():
                self._registry.grant(peer, frame)
            case CountAnnouncement():
                peer.announced.by_peer.update(frame.counters)
                for number in frame.counters:
                    self._counters.promise(number, peer.incarnation)
            case Abort():
                self._on_abort(peer, frame)
            case Message():
                self._messenger.on_message(peer, frame.payload)
            case MessageAck():
                self._messenger.on_ack(peer, frame.count)
            case GroupJoin():
                self._groups.on_join(peer, frame)
            case GroupLeave():
                self._groups.on_leave(peer, frame)
            case Revoked():
                self._poster.forget(peer, frame.region)
            case _:
                self._connections.disconnect(peer, f"it sent a {type(frame).__name__} out of place")

    def _on_abort(self, peer: Connection, abort: Abort) -> None:
        label = peer.label
        operation = f"{abort.operation} that promised {abort.counts} counts"
        self._counters.fail(abort.counter, lambda: TransferAbortedError(operation, abort.reason, peer=label))

    def on_down(self, peer: Connection) -> None:
        """Stop using a connection that is over; its transfers end through its driver."""
        self._poster.drop(peer)
        peer.credits.wake()

    def on_fenced(self, peer: Connection) -> None:
        """Poison what depended on a peer that is gone."""
        label, reason = peer.label, peer.reason
        # Where it has connected again, only what it owed by this connection is lost.
        owed = peer.announced.by_peer if peer.incarnation in self._connections.peers else None
        self._counters.fail_source(
            peer.incarnation, lambda: PeerLostError(label, reason, operation="a counter wait"), owed
        )
        self._groups.on_fenced(peer)
