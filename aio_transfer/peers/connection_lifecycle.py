"""Connection lifecycle: performs what follows from an event, down to the teardown of a connection.

:mod:`~aio_transfer.peers.connection_state` decides what follows; this module does it.

:source: docs/explanation/contract.md, rules 8 and 9
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

import anyio

from aio_transfer.control.frames import DeclaredLost, Goodbye, GoodbyeAck
from aio_transfer.driver.error_mapping import error_factory
from aio_transfer.errors import AioTransferError, PeerLostError
from aio_transfer.peers.connection_state import ConnectionAction, ConnectionEvent, ConnectionStage
from aio_transfer.peers.heartbeat_monitor import HeartbeatLoss, HeartbeatMonitor

if TYPE_CHECKING:
    from typing import Protocol

    from aio_transfer.control.frames import Frame
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_table import ConnectionTable
    from aio_transfer.runtime.event_loop import EventLoop

    class ConnectionObserver(Protocol):
        """Receiver of frames and of the ends of connections."""

        def on_frame(self, peer: Connection, frame: Frame, fds: tuple[int, ...]) -> None:
            """Handle a frame that is not about the connection itself; ``fds`` are closed afterwards."""
            ...

        def on_down(self, peer: Connection) -> None:
            """Stop using a connection; its transfers end through the driver."""
            ...

        def on_fenced(self, peer: Connection) -> None:
            """Fail what depended on a peer: all that it had sent has been counted."""
            ...


__all__ = ("ConnectionLifecycle",)

_LOGGER: Final = logging.getLogger(__name__)
_FENCE_GRACE_S: Final = 0.15
"""How long counters of a lost peer wait for its data path to be fenced, which a frozen peer can delay."""
_LEAVE_GRACE_S: Final = 1.0
"""The same after a goodbye: what was sent before it is still on its way, and worth waiting for."""


class ConnectionLifecycle:
    """Advances connections by events, and performs the actions that follow."""

    def __init__(
        self, loop: EventLoop, observer: ConnectionObserver, table: ConnectionTable, liveness_timeout_s: float
    ) -> None:
        """Start the heartbeat thread."""
        self._observer = observer
        self._table = table
        self._timeout_s = liveness_timeout_s
        self._heartbeats = HeartbeatMonitor(loop, liveness_timeout_s, self._on_heartbeat_loss)

    def apply(self, peer: Connection, event: ConnectionEvent, reason: str = "") -> None:
        """Advance a connection, and do at once what follows.

        :param reason: why it ends, where the event ends it
        """
        self._perform(peer, peer.state.apply(event, reason))

    def attach_heartbeat(self, peer: Connection, fd: int) -> None:
        """Give a connection the socket of its heartbeat; it is closed where it comes too late."""
        action = peer.state.apply(ConnectionEvent.HEARTBEAT_ATTACHED)
        if action is ConnectionAction.CLOSE_HEARTBEAT:
            os.close(fd)
            return
        peer.liveness.fd = fd
        self._perform(peer, action)

    def disconnect(self, peer: Connection, reason: str) -> None:
        """Hold a peer for lost: stop using the connection at once, and tear it down in the background. Idempotent."""
        self.apply(peer, ConnectionEvent.LOST, reason)

    def fail(self, peer: Connection, error: AioTransferError) -> None:
        """Disconnect over an error; what depends on the connection fails with an error of the same type."""
        if peer.failure is None and not isinstance(error, PeerLostError):
            peer.failure = error_factory(error)
        self.disconnect(peer, error.reason if isinstance(error, PeerLostError) else str(error))

    def send_frame(self, peer: Connection, frame: Frame, fds: tuple[int, ...] = ()) -> None:
        """Send a frame as far as that is possible; a connection that cannot take it is about to end anyway."""
        if peer.control is not None:
            try:
                peer.control.send_nowait(frame, fds)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
            except AioTransferError as error:
                self.fail(peer, error)

    def _perform(self, peer: Connection, action: ConnectionAction) -> None:
        match action:
            case ConnectionAction.START_HEARTBEAT:
                self._start_heartbeat(peer)
            case ConnectionAction.SEND_GOODBYE:
                self.send_frame(peer, Goodbye("the engine was closed"))
            case ConnectionAction.ACKNOWLEDGE_GOODBYE:
                self.send_frame(peer, GoodbyeAck())
            case ConnectionAction.DISCONNECT:
                self._disconnect(peer)
            case _:
                pass

    # --------------------------------------------------------------------------------------------------- heartbeat

    def _start_heartbeat(self, peer: Connection) -> None:
        fd, peer.liveness.fd = peer.liveness.fd, -1
        try:
            self._heartbeats.add(peer.number, fd)
        except AioTransferError as error:
            self.fail(peer, error)
            return
        peer.lifetime.ready.set()
        _LOGGER.info("connected to %s by %s", peer.label, peer.path)

    def _on_heartbeat_loss(self, number: int, loss: HeartbeatLoss) -> None:
        peer = self._table.find(number)
        if peer is None:
            return
        match loss:
            case HeartbeatLoss.RESET:
                self.disconnect(peer, "its connection was reset")
            case HeartbeatLoss.SILENT:
                self.send_frame(peer, DeclaredLost(f"silent for {self._timeout_s:g} s"))
                self.disconnect(peer, f"it has been silent for {self._timeout_s:g} s")
            case HeartbeatLoss.DECLARED:
                self.disconnect(peer, "it declared us lost")

    def stop_heartbeats(self) -> None:
        """Notify peers whose connections have not ended, and stop the native thread."""
        for peer in self._table.all():
            self._heartbeats.remove(peer.number, lost=True)
        self._heartbeats.close()

    # ---------------------------------------------------------------------------------------------------- teardown

    def _disconnect(self, peer: Connection) -> None:
        """Stop using a connection whose state has become final."""
        lost = peer.state.stage is ConnectionStage.LOST
        self._table.retire(peer)
        _LOGGER.log(logging.WARNING if lost else logging.INFO, "%s: %s", peer.label, peer.reason)
        self._disconnect_path(peer, lost=lost)
        if peer.liveness.fd >= 0:
            os.close(peer.liveness.fd)
            peer.liveness.fd = -1
        peer.lifetime.ready.set()
        self._observer.on_down(peer)
        if peer.lifetime.dial_scope is not None:
            peer.lifetime.dial_scope.cancel()
        if peer.control is not None:
            peer.lifetime.scope.cancel()  # its task goes on with the teardown
        else:
            self._observer.on_fenced(peer)
            self._finish(peer)

    def _disconnect_path(self, peer: Connection, *, lost: bool) -> None:
        if peer.driver is None:
            peer.lifetime.fenced.set()
            return
        self._heartbeats.remove(peer.number, lost=lost)
        try:
            peer.driver.driver.disconnect(peer.number, lost=lost)
        except Exception:  # the rest of the teardown must happen all the same
            _LOGGER.exception("the %s driver failed to disconnect %s", peer.driver.name, peer.label)
            peer.lifetime.fenced.set()

    async def teardown(self, peer: Connection) -> None:
        """Wait for the fence of the data path, fail what is still pending, and close the control connection."""
        left = peer.state.stage is ConnectionStage.LEFT
        with anyio.move_on_after(_LEAVE_GRACE_S if left else _FENCE_GRACE_S):
            await peer.lifetime.fenced.wait()
        self._observer.on_fenced(peer)
        if peer.control is not None:
            if left:
                with contextlib.suppress(Exception), anyio.move_on_after(_LEAVE_GRACE_S):
                    await peer.control.send(GoodbyeAck())
            peer.control.close()
        self._finish(peer)

    def _finish(self, peer: Connection) -> None:
        peer.lifetime.ended.set()
        self._table.remove(peer)
