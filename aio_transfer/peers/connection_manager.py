"""Connection manager: dials and accepts peers, decides which connection stands, and receives its frames.

Each pair of engines has one control connection, and one heartbeat that the native thread answers.

:source: docs/explanation/contract.md, rules 8 and 9
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct

from aio_transfer.control.codec import clip
from aio_transfer.control.frames import DeclaredLost, Goodbye, GoodbyeAck, Refusal
from aio_transfer.driver.error_mapping import as_typed_error
from aio_transfer.errors import AioTransferError, ClosedError
from aio_transfer.peers.connection_lifecycle import ConnectionLifecycle
from aio_transfer.peers.connection_state import ConnectionAction, ConnectionEvent, ConnectionStage
from aio_transfer.peers.connection_table import ConnectionTable
from aio_transfer.peers.path_setup import PathSetup, owned_fds
from aio_transfer.topology.identity import new_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from typing import Any

    from anyio.abc import TaskGroup

    from aio_transfer.control.authentication import AttachProofs
    from aio_transfer.control.frames import AttachHeartbeat, Frame, Hello
    from aio_transfer.control.handshake import Credentials, HeartbeatConnection, Session
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_lifecycle import ConnectionObserver
    from aio_transfer.runtime.event_loop import EventLoop
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("ConnectionManager", "ConnectionTimeouts")


class ConnectionTimeouts(Struct, frozen=True, kw_only=True):
    """Time limits of connections.

    :param liveness_s: a peer that is silent for longer is lost
    :param connect_s: for making one connection
    """

    liveness_s: float
    connect_s: float


class ConnectionManager:
    """All connections of one engine; it accepts sessions for the listener, as its ``Acceptor``."""

    def __init__(
        self,
        loop: EventLoop,
        observer: ConnectionObserver,
        drivers: Mapping[str, OpenDriver],
        credentials: Credentials,
        timeouts: ConnectionTimeouts,
    ) -> None:
        """Begin without connections; :meth:`start` comes next."""
        self._observer = observer
        self._incarnation = credentials.info.incarnation
        self._connect_s = timeouts.connect_s
        self._tasks: TaskGroup | None = None
        self._table = ConnectionTable()
        self._lifecycle = ConnectionLifecycle(loop, observer, self._table, timeouts.liveness_s)
        self._setup = PathSetup(drivers, credentials, timeouts.connect_s)
        self.peers = self._table.current
        """The current connection per incarnation: connecting or connected."""
        self.lost = self._table.reasons
        """Why former connections ended, by incarnation."""
        self.send_frame = self._lifecycle.send_frame
        self.disconnect = self._lifecycle.disconnect
        self.find = self._table.find

    def start(self, tasks: TaskGroup) -> None:
        """Use a task group for everything that runs in the background."""
        self._tasks = tasks

    def label_of(self, incarnation: bytes) -> str:
        """Return the label of a peer."""
        peer = self.peers.get(incarnation)
        return incarnation.hex()[:8] if peer is None else peer.label

    # ----------------------------------------------------------------------------------------------------- dialing

    def ensure(self, info: PeerInfo) -> Connection:
        """Return the connection to a peer, dialed now if there is none. Wait for it with ``wait_ready``."""
        found = self.peers.get(info.incarnation)
        if found is not None:
            return found
        peer = self._table.add(info, new_session())
        self._spawn(self._dial, peer)
        return peer

    def _spawn(self, task: Callable[[Connection], Coroutine[Any, Any, None]], peer: Connection) -> None:
        if self._tasks is None:
            raise ClosedError("the engine")
        self._tasks.start_soon(task, peer, name=f"aio_transfer.connection({peer.label})")

    async def _dial(self, peer: Connection) -> None:
        """Dial a peer, unless its own dial is accepted first."""
        session = None
        try:
            with anyio.move_on_after(self._connect_s) as peer.lifetime.dial_scope:
                session = await self._setup.dial(peer)
        except AioTransferError as error:
            if peer.state.stage is ConnectionStage.DIALING:
                self._lifecycle.fail(peer, error)
            return
        finally:
            peer.lifetime.dial_scope = None
        if session is None:
            if peer.state.stage is ConnectionStage.DIALING:
                self.disconnect(peer, f"no connection within {self._connect_s:g} s")
        elif peer.state.apply(ConnectionEvent.DIAL_ACCEPTED) is ConnectionAction.CLOSE_SESSION:
            session.connection.close()  # in that very tick its own dial was accepted, or the connection ended
        else:
            await self._run(peer, session, self._setup.offer)

    # --------------------------------------------------------------------------------------------------- accepting

    def decide(self, hello: Hello) -> Refusal | None:
        """Accept a dialer, unless another connection to it stands."""
        if self._tasks is None:
            return Refusal("closing", "the engine is closing")
        found = self.peers.get(hello.info.incarnation)
        is_smaller = hello.info.incarnation < self._incarnation
        if found is None or found.state.accepts_dial(peer_is_smaller=is_smaller):
            return None
        return Refusal("duplicate", "another connection stands")

    def on_session(self, session: Session) -> None:
        """Take over the session of an accepted dialer."""
        peer = self.peers.get(session.peer.incarnation)
        if peer is None:
            peer = self._table.add(session.peer, session.token)
        if peer.state.apply(ConnectionEvent.PEER_ACCEPTED) is ConnectionAction.CLOSE_SESSION:
            session.connection.close()
            return
        peer.token = session.token
        peer.control = session.connection
        if not session.connection.is_local:
            peer.liveness.proofs = session.proofs
        if peer.lifetime.dial_scope is not None:
            peer.lifetime.dial_scope.cancel()

        async def run(peer: Connection) -> None:
            await self._run(peer, session, self._setup.answer)

        self._spawn(run, peer)

    def heartbeat_proofs(self, attach: AttachHeartbeat) -> AttachProofs | None:
        """Return the proofs of the session that waits for this heartbeat."""
        peer = self.peers.get(attach.incarnation)
        if peer is None or not peer.state.accepts_heartbeat or not hmac.compare_digest(peer.token, attach.session):
            return None
        return peer.liveness.proofs

    def on_heartbeat(self, heartbeat: HeartbeatConnection) -> None:
        """Take over the heartbeat connection of the session that :meth:`heartbeat_proofs` has just found."""
        self._lifecycle.attach_heartbeat(self.peers[heartbeat.incarnation], heartbeat.connection.detach())

    # ------------------------------------------------------------------------------------------------------ frames

    async def _run(
        self, peer: Connection, session: Session, join: Callable[[Connection, Session], Awaitable[int]]
    ) -> None:
        """Join a path, receive frames until the end, and tear down."""
        peer.control = session.connection
        with peer.lifetime.scope:
            try:
                with anyio.fail_after(self._connect_s):
                    heartbeat = await join(peer, session)
            except TimeoutError:
                self.disconnect(peer, f"no path was joined within {self._connect_s:g} s")
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self.disconnect(peer, "it hung up while a path was being joined")
            except Exception as error:  # noqa: BLE001 - a driver may raise anything
                self._lifecycle.fail(peer, as_typed_error(error, "connect", peer.label))
            else:
                self._lifecycle.apply(peer, ConnectionEvent.PATH_JOINED)
                if heartbeat >= 0:
                    self._lifecycle.attach_heartbeat(peer, heartbeat)
                await self._receive_frames(peer, session)
        if not peer.state.is_final:  # cancelled from outside: the engine's task group
            self.disconnect(peer, "the engine was cancelled")
        with anyio.CancelScope(shield=True):
            await self._lifecycle.teardown(peer)

    async def _receive_frames(self, peer: Connection, session: Session) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.connection.pump)
            if not peer.is_up:  # the dialer's heartbeat comes by another connection; frames must be read meanwhile
                tasks.start_soon(self._require_heartbeat, peer)
            try:
                while not peer.state.is_final:
                    frame, fds = await session.connection.receive()
                    self._on_frame(peer, frame, fds)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._lifecycle.apply(peer, ConnectionEvent.STREAM_ENDED, "its connection was reset")
            except AioTransferError as error:
                self._lifecycle.fail(peer, error)
            tasks.cancel_scope.cancel()

    async def _require_heartbeat(self, peer: Connection) -> None:
        with anyio.move_on_after(self._connect_s):
            await peer.lifetime.ready.wait()
            return
        self.disconnect(peer, f"no heartbeat within {self._connect_s:g} s")

    def _on_frame(self, peer: Connection, frame: Frame, fds: tuple[int, ...]) -> None:
        with owned_fds(fds):
            if peer.state.is_final:  # received in the tick in which it ended
                return
            match frame:
                case Goodbye(reason=detail):
                    reason = _with_detail("it said goodbye", detail)
                    self._lifecycle.apply(peer, ConnectionEvent.GOODBYE_RECEIVED, reason)
                case GoodbyeAck():
                    self._lifecycle.apply(peer, ConnectionEvent.GOODBYE_ACKNOWLEDGED, "we said goodbye")
                case DeclaredLost(reason=detail):
                    self.disconnect(peer, _with_detail("it declared us lost", detail))
                case _:
                    self._observer.on_frame(peer, frame, fds)

    # ----------------------------------------------------------------------------------------------- driver events

    def on_fenced_event(self, number: int) -> None:
        """Handle a driver's FENCED event."""
        peer = self._table.find(number)
        if peer is not None:
            peer.lifetime.fenced.set()

    def on_failed_event(self, number: int, reason: str) -> None:
        """Handle a driver's PEER_FAILED event: the data path broke, also where the heartbeat goes on."""
        peer = self._table.find(number)
        if peer is not None:
            self.disconnect(peer, f"its data path broke: {reason}")

    # ----------------------------------------------------------------------------------------------------- closing

    async def say_goodbye(self, peer: Connection, grace_s: float) -> None:
        """Send a goodbye, and wait up to ``grace_s`` until the peer has processed all that was sent before it."""
        self._lifecycle.apply(peer, ConnectionEvent.CLOSE_REQUESTED, "the engine was closed")
        if peer.state.stage is ConnectionStage.LEAVING:
            # Also where another task has sent the goodbye: to cut its wait short would lose counts.
            with anyio.move_on_after(grace_s):
                await peer.lifetime.ended.wait()
            self._lifecycle.apply(peer, ConnectionEvent.GRACE_OVER, "we said goodbye")
        with anyio.move_on_after(grace_s):
            await peer.lifetime.ended.wait()

    def abort_all(self) -> None:
        """Drop every connection without a goodbye, and accept none any more, as at the end of a process."""
        self._tasks = None
        for peer in self._table.all():
            self.disconnect(peer, "this engine was killed")

    async def aclose(self, grace_s: float) -> None:
        """Say goodbye to every peer, and stop."""
        self._tasks = None
        async with anyio.create_task_group() as group:
            for peer in self._table.all():
                group.start_soon(self.say_goodbye, peer, grace_s)
        self._lifecycle.stop_heartbeats()


def _with_detail(reason: str, detail: str) -> str:
    """Append what a peer wrote, fit for a log line."""
    return f"{reason}: {clip(detail)}" if detail else reason
