"""Connections: who calls whom, which path is taken, what is said over it, and how it ends.

One control connection per pair of engines, and one for liveness that the native thread answers. When both sides call
at once, the call of the smaller incarnation stands. A connection that ended is never revived: another gets a new
number, so that nothing of the old can be taken for the new.

:source: design.md section 4, "Control plane"; section 2, rules 8 and 9
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from typing import TYPE_CHECKING, Final

import anyio

from aio_transfer.backends.native import Heartbeat
from aio_transfer.control.codec import clip
from aio_transfer.control.dialer import dial
from aio_transfer.control.frames import Answer, DeclaredLost, Goodbye, GoodbyeAck, Joined, Offer, Refusal
from aio_transfer.control.handshake import Credentials, RefusedError, call
from aio_transfer.driver.backend_registry import choose
from aio_transfer.driver.error_mapping import as_typed_error, error_factory
from aio_transfer.driver.protocol import Endpoint
from aio_transfer.driver.records import PeerNumber
from aio_transfer.errors import AioTransferError, ClosedError, PeerLostError, ProtocolError, UnsupportedError
from aio_transfer.peers.connection import Connection, PeerState
from aio_transfer.topology.identity import new_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from typing import Protocol

    from anyio.abc import TaskGroup

    from aio_transfer.control.connection import FrameConnection
    from aio_transfer.control.frames import Frame, Hello
    from aio_transfer.control.handshake import Session
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.runtime.event_loop import EventLoop
    from aio_transfer.topology.peer_info import PeerInfo

    class ConnectionObserver(Protocol):
        """What happens to connections, for those who use them."""

        def on_frame(self, peer: Connection, frame: Frame, fds: tuple[int, ...]) -> None:
            """Handle a frame that is not about the connection itself; ``fds`` are closed afterwards."""
            ...

        def on_down(self, peer: Connection) -> None:
            """Stop using a connection; its transfers end through the driver."""
            ...

        def on_fenced(self, peer: Connection) -> None:
            """Poison what depended on a peer: all that it had sent has been counted."""
            ...


__all__ = ("ConnectionManager",)

_LOGGER: Final = logging.getLogger(__name__)
_FENCE_GRACE_S: Final = 0.15
"""How long counters of a lost peer wait for the data path's last word, which a frozen peer can withhold."""
_LEAVE_GRACE_S: Final = 1.0
"""The same after a goodbye: what was sent before it is still on its way, and worth waiting for."""
_REDIAL_S: Final = 0.02
_ENDED: Final = (PeerState.LOST, PeerState.LEFT)
_LOSS: Final = {1: "its connection was reset", 2: "it has been silent for {timeout:g} s", 3: "it declared us lost"}


class ConnectionManager:
    """All connections of one engine."""

    def __init__(  # noqa: PLR0913 - one caller
        self,
        loop: EventLoop,
        owner: ConnectionObserver,
        drivers: Mapping[str, OpenDriver],
        credentials: Credentials,
        *,
        liveness_timeout_s: float,
        deadline_s: float,
    ) -> None:
        """Begin without connections.

        :param liveness_timeout_s: a peer that is silent for longer is lost
        :param deadline_s: for making one connection
        """
        self._loop = loop
        self._owner = owner
        self._drivers = drivers
        self._credentials = credentials
        self._timeout_s = liveness_timeout_s
        self._deadline_s = deadline_s
        self._numbers = itertools.count(1)
        self._tasks: TaskGroup | None = None
        self._by_number: dict[int, Connection] = {}
        self._heartbeat = Heartbeat(
            max(1, round(liveness_timeout_s * 1000 / 6)), max(1, round(liveness_timeout_s * 1000))
        )
        self.peers: dict[bytes, Connection] = {}
        """The current connection per incarnation: connecting or connected."""
        self.lost: dict[bytes, str] = {}
        """How former ones ended, the latest 1,024."""
        loop.watch(self._heartbeat.fileno(), self._on_heartbeat)

    def start(self, tasks: TaskGroup) -> None:
        """Use a task group for everything that goes on in the background."""
        self._tasks = tasks

    @property
    def _me(self) -> PeerInfo:
        return self._credentials.info

    def _spawn(self, task: Callable[[Connection], Awaitable[None]], peer: Connection) -> None:
        if self._tasks is None:
            raise ClosedError("the engine")

        async def run() -> None:
            await task(peer)

        self._tasks.start_soon(run, name=f"aio_transfer.{task.__name__}({peer.label})")

    # ------------------------------------------------------------------------------------------------- connecting

    def ensure(self, info: PeerInfo) -> Connection:
        """Return the connection to a peer, begun now if there is none. Wait for it with ``wait_ready``."""
        found = self.peers.get(info.incarnation)
        if found is not None:
            return found
        peer = self._new(info, new_session())
        self._spawn(self._dial, peer)
        return peer

    def _new(self, info: PeerInfo, token: bytes) -> Connection:
        peer = Connection(info, PeerNumber(next(self._numbers)), token)
        self.peers[info.incarnation] = peer
        self._by_number[peer.number] = peer
        return peer

    async def _dial(self, peer: Connection) -> None:
        """Call a peer, unless it is about to reach us."""
        session = None
        try:
            with anyio.fail_after(self._deadline_s), anyio.CancelScope() as peer.dial_scope:
                session = await self._call_until_accepted(peer)
            peer.dial_scope = None
            if session is None:  # its own call was accepted meanwhile
                return
        except TimeoutError:
            if peer.state is PeerState.CONNECTING and peer.control is None:
                self.disconnect(peer, PeerState.LOST, f"no connection within {self._deadline_s:g} s")
            return
        except AioTransferError as error:
            if peer.control is None:
                self._fail(peer, error)
            return
        if peer.state in _ENDED or peer.control is not None:  # in that very tick its own call was taken instead
            session.connection.close()
            return
        await self._run(peer, session, self._offer)

    async def _call_until_accepted(self, peer: Connection) -> Session | None:
        while True:
            connection = await dial(peer.info, host=self._me.host, deadline_s=self._deadline_s)
            try:
                return await call(
                    connection,
                    self._credentials,
                    session=peer.token,
                    expected=peer.incarnation,
                    deadline_s=self._deadline_s,
                )
            except RefusedError as error:
                if error.kind != "duplicate":
                    raise
            # It holds another connection of ours: its own call, which stands, or one whose end it has not seen yet.
            if peer.control is not None or peer.state is not PeerState.CONNECTING:
                return None
            await anyio.sleep(_REDIAL_S)

    def decide(self, hello: Hello) -> Refusal | None:
        """Accept a caller, unless another connection to it stands."""
        if self._tasks is None:
            return Refusal("closing", "the engine is closing")
        if hello.role == "heartbeat":
            if self._heartbeat_owner(hello.session, hello.info.incarnation) is None:
                return Refusal("session", "no such session waits for a pulse")
            return None
        found = self.peers.get(hello.info.incarnation)
        if found is None:
            return None
        if found.control is None and hello.info.incarnation < self._me.incarnation:
            return None  # both call: the smaller incarnation's call stands
        return Refusal("duplicate", "another connection stands")

    def _heartbeat_owner(self, token: bytes, incarnation: bytes) -> Connection | None:
        found = self.peers.get(incarnation)
        return found if found is not None and found.token == token and not found.pulsed else None

    def on_session(self, session: Session) -> None:
        """Take over an accepted caller."""
        if session.role == "heartbeat":
            peer = self._heartbeat_owner(session.token, session.peer.incarnation)
            if peer is None:
                session.connection.close()
                return
            peer.heartbeat_fd = session.connection.detach()
            peer.pulsed = True
            if peer.joined:
                self._up(peer)
            return
        peer = self.peers.get(session.peer.incarnation)
        if peer is None:
            peer = self._new(session.peer, session.token)
        if peer.control is not None:  # our own call was answered while this one proved itself
            session.connection.close()
            return
        peer.token = session.token
        peer.control = session.connection
        if peer.dial_scope is not None:
            peer.dial_scope.cancel()

        async def run(peer: Connection) -> None:
            await self._run(peer, session, self._answer)

        self._spawn(run, peer)

    async def _run(self, peer: Connection, session: Session, join: Callable[[Connection], Awaitable[None]]) -> None:
        """Join a path, then listen until the end."""
        peer.control = session.connection
        with peer.scope:
            try:
                with anyio.fail_after(self._deadline_s):
                    await join(peer)
            except TimeoutError:
                self.disconnect(peer, PeerState.LOST, f"no path was joined within {self._deadline_s:g} s")
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self.disconnect(peer, PeerState.LOST, "it hung up while a path was being joined")
            except Exception as error:  # noqa: BLE001 - a driver may raise anything
                self._fail(peer, as_typed_error(error, "connect", peer.label))
            else:
                await self._listen(peer)
        if peer.state not in _ENDED:  # cancelled from outside: the engine's task group
            self.disconnect(peer, PeerState.LOST, "the engine was cancelled")
        with anyio.CancelScope(shield=True):
            await self._teardown(peer)

    async def _offer(self, peer: Connection) -> None:
        """Choose the path and join it, as the caller."""
        control = _control(peer)
        # Only AF_UNIX proves a shared host: virtual machines restored from one snapshot have equal identities.
        one = choose(self._drivers, peer.info, same_host=control.is_local)
        peer.driver = one  # before it is used: if one rail refuses, those that did not are given back with it
        mine = one.driver.connect(peer.number, None)
        offer = Offer(backend=one.name, blob=mine.blob, fds=len(mine.fds), connection=peer.number)
        await control.send(offer, mine.fds)
        answer, fds = await control.receive()
        with _owned(fds):
            _require_joining(peer)
            if not isinstance(answer, Answer):
                raise _unexpected(peer, answer)
            if answer.error:
                raise UnsupportedError(f"a path to {peer.label}", needs=one.name, has=answer.error)
            one.driver.connect(peer.number, Endpoint(blob=answer.blob, fds=fds))
        await control.send(Joined(connection=peer.number))
        connection = await dial(peer.info, host=self._me.host, deadline_s=self._deadline_s)
        pulse = await call(
            connection, self._credentials, session=peer.token, role="heartbeat", expected=peer.incarnation
        )
        if peer.state is not PeerState.CONNECTING:
            pulse.connection.close()
        _require_joining(peer)
        peer.heartbeat_fd, peer.pulsed = pulse.connection.detach(), True
        self._up(peer)

    async def _answer(self, peer: Connection) -> None:
        """Join the path that the caller chose."""
        control = _control(peer)
        offer, fds = await control.receive()
        with _owned(fds):
            _require_joining(peer)
            if not isinstance(offer, Offer):
                raise _unexpected(peer, offer)
            one = self._drivers.get(offer.backend)
            if one is None:
                error = UnsupportedError(f"a path to {peer.label}", needs=offer.backend, has=", ".join(self._drivers))
                await control.send(Answer(backend=offer.backend, error=clip(str(error))))
                raise error
            peer.driver = one  # as above
            mine = one.driver.connect(peer.number, None)
            try:
                one.driver.connect(peer.number, Endpoint(blob=offer.blob, fds=fds))
            except AioTransferError as error:
                await control.send(Answer(backend=offer.backend, error=clip(str(error))))
                raise
        answer = Answer(backend=one.name, blob=mine.blob, fds=len(mine.fds), connection=peer.number)
        await control.send(answer, mine.fds)
        joined, fds = await control.receive()
        with _owned(fds):
            _require_joining(peer)
            if not isinstance(joined, Joined):
                raise _unexpected(peer, joined)
        # The caller's pulse may have come before, or comes while we listen: an end of the connection must be heard.
        peer.joined = True
        if peer.pulsed:
            self._up(peer)

    def _up(self, peer: Connection) -> None:
        fd, peer.heartbeat_fd = peer.heartbeat_fd, -1
        self._heartbeat.add(peer.number, fd)
        peer.state = PeerState.CONNECTED
        peer.ready.set()
        _LOGGER.info("connected to %s by %s", peer.label, peer.driver.path if peer.driver else "nothing")

    async def _listen(self, peer: Connection) -> None:
        control = _control(peer)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(control.pump)
            tasks.start_soon(self._require_pulse, peer)
            try:
                while peer.state not in _ENDED:
                    frame, fds = await control.receive()
                    self._on_frame(peer, frame, fds)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                leaving = peer.state is PeerState.LEAVING
                self.disconnect(peer, PeerState.LEFT if leaving else PeerState.LOST, _LOSS[1])
            except AioTransferError as error:
                self._fail(peer, error)
            tasks.cancel_scope.cancel()

    async def _require_pulse(self, peer: Connection) -> None:
        with anyio.move_on_after(self._deadline_s):
            await peer.ready.wait()
            return
        self.disconnect(peer, PeerState.LOST, f"it showed no pulse within {self._deadline_s:g} s")

    def _on_frame(self, peer: Connection, frame: Frame, fds: tuple[int, ...]) -> None:
        if peer.state in _ENDED:  # read in the tick in which it ended
            for fd in fds:
                os.close(fd)
            return
        match frame:
            case Goodbye(reason=reason):
                with _owned(fds):
                    if peer.state is PeerState.LEAVING:
                        self.send_frame(peer, GoodbyeAck())
                    else:
                        self.disconnect(peer, PeerState.LEFT, f"it said goodbye{': ' * bool(reason)}{clip(reason)}")
            case GoodbyeAck():
                with _owned(fds):
                    peer.acked.set()
            case DeclaredLost(reason=reason):
                with _owned(fds):
                    self.disconnect(peer, PeerState.LOST, f"it declared us lost{': ' * bool(reason)}{clip(reason)}")
            case _:
                with _owned(fds):
                    self._owner.on_frame(peer, frame, fds)

    def send_frame(self, peer: Connection, frame: Frame, fds: tuple[int, ...] = ()) -> None:
        """Send a frame as far as that is possible; a connection that cannot take it is about to end anyway."""
        if peer.control is not None:
            try:
                peer.control.send_nowait(frame, fds)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
            except AioTransferError as error:
                self._fail(peer, error)

    # ------------------------------------------------------------------------------------------------------ ending

    def _on_heartbeat(self) -> None:
        for number, loss in self._heartbeat.drain():
            peer = self._by_number.get(number)
            if peer is None:
                continue
            if loss == 2:  # noqa: PLR2004 - Loss::silent in pulse.h
                self.send_frame(peer, DeclaredLost(f"silent for {self._timeout_s:g} s"))
            self.disconnect(peer, PeerState.LOST, _LOSS[loss].format(timeout=self._timeout_s))

    def _fail(self, peer: Connection, error: AioTransferError) -> None:
        if peer.failure is None and not isinstance(error, PeerLostError):
            peer.failure = error_factory(error)
        self.disconnect(peer, PeerState.LOST, error.reason if isinstance(error, PeerLostError) else str(error))

    def disconnect(self, peer: Connection, state: PeerState, reason: str) -> None:
        """Stop using a connection at once; the rest of its end follows in the background. Idempotent."""
        if peer.state in _ENDED:
            return
        was_up = peer.state is not PeerState.CONNECTING
        peer.state = state
        peer.reason = reason
        if self.peers.get(peer.incarnation) is peer:
            del self.peers[peer.incarnation]
        self.lost[peer.incarnation] = reason
        while len(self.lost) > 1024:  # noqa: PLR2004
            del self.lost[next(iter(self.lost))]
        if was_up or state is PeerState.LOST:
            _LOGGER.log(logging.WARNING if state is PeerState.LOST else logging.INFO, "%s: %s", peer.label, reason)
        if peer.driver is not None:
            self._heartbeat.remove(peer.number, state is PeerState.LOST)
            try:
                peer.driver.driver.disconnect(peer.number, lost=state is PeerState.LOST)
            except Exception:  # what else is to end here must end all the same
                _LOGGER.exception("the %s driver failed to disconnect %s", peer.driver.name, peer.label)
                peer.fenced.set()
        else:
            peer.fenced.set()
        if peer.heartbeat_fd >= 0:
            os.close(peer.heartbeat_fd)
            peer.heartbeat_fd = -1
        peer.ready.set()
        self._owner.on_down(peer)
        if peer.dial_scope is not None:
            peer.dial_scope.cancel()
        if peer.control is None:
            peer.ended.set()
            self._owner.on_fenced(peer)
            del self._by_number[peer.number]
        else:
            peer.scope.cancel()

    async def _teardown(self, peer: Connection) -> None:
        """Give the data path its last word, poison what it did not fulfil, and take leave."""
        left = peer.state is PeerState.LEFT
        with anyio.move_on_after(_LEAVE_GRACE_S if left else _FENCE_GRACE_S):
            await peer.fenced.wait()
        self._owner.on_fenced(peer)
        if left and peer.control is not None:
            with contextlib.suppress(Exception), anyio.move_on_after(_LEAVE_GRACE_S):
                await peer.control.send(GoodbyeAck())
        if peer.control is not None:
            peer.control.close()
        peer.ended.set()
        del self._by_number[peer.number]

    def on_fenced_event(self, number: int) -> None:
        """Handle a driver's FENCED event."""
        peer = self._by_number.get(number)
        if peer is not None:
            peer.fenced.set()

    def on_failed_event(self, number: int, reason: str) -> None:
        """Handle a driver's PEER_FAILED event: the data path broke, whatever liveness says."""
        peer = self._by_number.get(number)
        if peer is not None:
            self.disconnect(peer, PeerState.LOST, f"its data path broke: {reason}")

    def reject(self, peer: Connection, reason: str) -> None:
        """End the connection of a peer that broke the protocol."""
        self.disconnect(peer, PeerState.LOST, reason)

    def find(self, number: int) -> Connection | None:
        """Return the connection of that number, also one that is ending."""
        return self._by_number.get(number)

    def label_of(self, incarnation: bytes) -> str:
        """Return what people call a peer."""
        peer = self.peers.get(incarnation)
        return incarnation.hex()[:8] if peer is None else peer.label

    async def say_goodbye(self, peer: Connection, grace_s: float) -> None:
        """Say goodbye, and wait up to ``grace_s`` until the peer has taken note of all that was sent before."""
        if peer.state is PeerState.LEAVING:  # another task says goodbye: a second one would cut the first one short
            with anyio.move_on_after(grace_s):
                await peer.ended.wait()
            self.disconnect(peer, PeerState.LEFT, "we said goodbye")
        elif not peer.is_up:
            self.disconnect(peer, PeerState.LOST, "the engine was closed")
        else:
            peer.state = PeerState.LEAVING
            self.send_frame(peer, Goodbye("the engine was closed"))
            with anyio.move_on_after(grace_s):
                await peer.acked.wait()
            self.disconnect(peer, PeerState.LEFT, "we said goodbye")
        with anyio.move_on_after(grace_s):
            await peer.ended.wait()

    def abort_all(self) -> None:
        """Hang up on every peer without a word, and answer nobody any more: what the end of a process looks like."""
        self._tasks = None
        for peer in tuple(self._by_number.values()):
            self.disconnect(peer, PeerState.LOST, "this engine was killed")

    async def aclose(self, grace_s: float) -> None:
        """Leave every peer, and stop."""
        self._tasks = None
        async with anyio.create_task_group() as group:
            for peer in tuple(self._by_number.values()):
                group.start_soon(self.say_goodbye, peer, grace_s)
        self._loop.unwatch(self._heartbeat.fileno())
        for peer in tuple(self._by_number.values()):
            self._heartbeat.remove(peer.number, lost=True)


def _control(peer: Connection) -> FrameConnection:
    if peer.control is None:
        raise PeerLostError(peer.label, "there is no control connection")
    return peer.control


def _require_joining(peer: Connection) -> None:
    """Refuse to go on with what has ended: a frame that came in that very tick wakes its task before the cancellation.

    :raises PeerLostError: it has ended
    """
    if peer.state is not PeerState.CONNECTING:
        raise peer.lost_error()


def _unexpected(peer: Connection, frame: object) -> AioTransferError:
    if isinstance(frame, Goodbye):
        return PeerLostError(peer.label, f"it gave up: {clip(frame.reason)}")
    return ProtocolError(peer.label, f"{type(frame).__name__} while a path was being joined")


@contextlib.contextmanager
def _owned(fds: tuple[int, ...]) -> Iterator[None]:
    """Close received fds once their frame is handled: drivers keep duplicates."""
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)
