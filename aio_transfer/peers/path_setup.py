"""Path setup: the session, the data path and the heartbeat of one connection.

The side that dialed chooses the backend and offers its end of a path; the other one answers with its end:

.. code-block:: text

    dialer                                  listener
    Offer(backend, blob, fds)            →
                                         ←  Answer(blob, fds) or Answer(error)
    Joined(heartbeat socket)             →                                          over AF_UNIX
    Joined(), and a heartbeat connection →                                          over TCP
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

import anyio

from aio_transfer.control.codec import clip
from aio_transfer.control.dialer import dial, dial_again
from aio_transfer.control.frames import Answer, Goodbye, Joined, Offer
from aio_transfer.control.handshake import attach_heartbeat, client_handshake
from aio_transfer.control.refusals import RefusedError
from aio_transfer.driver.backend_registry import choose
from aio_transfer.driver.protocol import Endpoint
from aio_transfer.errors import AioTransferError, PeerLostError, ProtocolError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aio_transfer.control.connection import FrameConnection
    from aio_transfer.control.handshake import Credentials, Session
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.peers.connection import Connection

__all__ = ("PathSetup", "owned_fds")

_REDIAL_S: Final = 0.02


class PathSetup:
    """Sets up sessions, data paths and heartbeats with the drivers and credentials of one engine."""

    def __init__(self, drivers: Mapping[str, OpenDriver], credentials: Credentials, deadline_s: float) -> None:
        """Remember what every setup needs.

        :param deadline_s: for one connection
        """
        self._drivers = drivers
        self._credentials = credentials
        self._deadline_s = deadline_s

    async def dial(self, peer: Connection) -> Session | None:
        """Dial a peer until it accepts.

        :returns: ``None`` where the peer's own dial was accepted here meanwhile
        :raises AioTransferError: it cannot be reached, or refuses for good
        """
        while True:
            connection = await dial(peer.info, host=self._credentials.info.host, deadline_s=self._deadline_s)
            try:
                return await client_handshake(
                    connection,
                    self._credentials,
                    session=peer.token,
                    expected=peer.incarnation,
                    deadline_s=self._deadline_s,
                )
            except RefusedError as error:
                if error.kind != "duplicate":
                    raise
            # It has another connection to us: its own dial, which stands, or one whose end it has not noticed yet.
            if peer.control is not None or not peer.state.is_starting:
                return None
            await anyio.sleep(_REDIAL_S)

    async def offer(self, peer: Connection, session: Session) -> int:
        """Choose the path and join it, as the side that dialed.

        :returns: the fd of the heartbeat, now the caller's
        :raises AioTransferError: no path; what was begun in the driver ends with the connection
        """
        control = session.connection
        # Only AF_UNIX proves a shared host: virtual machines restored from one snapshot have equal identities.
        one = choose(self._drivers, peer.info, same_host=control.is_local)
        peer.driver = one  # before it is used: if one rail fails, disconnecting frees the others
        mine = one.driver.connect(peer.number, None)
        offer = Offer(backend=one.name, blob=mine.blob, fds=len(mine.fds), connection=peer.number)
        answer, fds = await control.exchange(offer, mine.fds)
        with owned_fds(fds):
            peer.require_starting()
            if not isinstance(answer, Answer):
                raise _unexpected(peer, answer)
            if answer.error:
                raise UnsupportedError(f"a path to {peer.label}", needs=one.name, has=answer.error)
            one.driver.connect(peer.number, Endpoint(blob=answer.blob, fds=fds))
        if control.is_local:
            return _pass_heartbeat(peer, control)
        control.send_nowait(Joined(connection=peer.number))
        return await self._dial_heartbeat(peer, session)

    async def _dial_heartbeat(self, peer: Connection, session: Session) -> int:
        """Make the heartbeat connection over TCP."""
        connection = await dial_again(session.connection, deadline_s=self._deadline_s)
        with contextlib.closing(connection):
            await attach_heartbeat(
                connection, session, incarnation=self._credentials.info.incarnation, deadline_s=self._deadline_s
            )
            peer.require_starting()
            return connection.detach()

    async def answer(self, peer: Connection, session: Session) -> int:
        """Join the path that the dialer chose.

        :returns: the fd of the heartbeat, now the caller's; -1 over TCP, where a connection of its own brings it
        :raises AioTransferError: no path; what was begun in the driver ends with the connection
        """
        control = session.connection
        offer, fds = await control.receive()
        with owned_fds(fds):
            peer.require_starting()
            if not isinstance(offer, Offer):
                raise _unexpected(peer, offer)
            answer, mine_fds = await self._join(peer, control, offer, fds)
        joined, fds = await control.exchange(answer, mine_fds)
        with owned_fds(fds):
            peer.require_starting()
            if not isinstance(joined, Joined):
                raise _unexpected(peer, joined)
            if not control.is_local:
                return -1
            return _take_heartbeat(peer, fds)

    async def _join(
        self, peer: Connection, control: FrameConnection, offer: Offer, fds: tuple[int, ...]
    ) -> tuple[Answer, tuple[int, ...]]:
        """Join the offered end, and return ours."""
        one = self._drivers.get(offer.backend)
        try:
            if one is None:
                raise UnsupportedError(f"a path to {peer.label}", needs=offer.backend, has=", ".join(self._drivers))
            peer.driver = one  # before it is used, as in `offer`
            mine = one.driver.connect(peer.number, None)
            one.driver.connect(peer.number, Endpoint(blob=offer.blob, fds=fds))
        except AioTransferError as error:
            await control.send(Answer(backend=offer.backend, error=clip(str(error))))
            raise
        answer = Answer(backend=one.name, blob=mine.blob, fds=len(mine.fds), connection=peer.number)
        return answer, mine.fds


def _pass_heartbeat(peer: Connection, control: FrameConnection) -> int:
    """Send one end of a socket pair with the last frame, and return the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        control.send_nowait(Joined(connection=peer.number, fds=1), (theirs.fileno(),))
        return ours.detach()


def _take_heartbeat(peer: Connection, fds: tuple[int, ...]) -> int:
    """Check that a peer passed a connected stream socket, and return a duplicate of it.

    Anything else could block the heartbeat thread, which serves every peer.
    """
    if len(fds) != 1:
        raise ProtocolError(peer.label, "Joined over AF_UNIX without a heartbeat socket")
    fd = os.dup(fds[0])
    try:
        with socket.socket(fileno=fd) as sock:
            fd = -1
            if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                raise ProtocolError(peer.label, "the heartbeat socket that it passed is not an AF_UNIX stream")
            sock.getpeername()  # fails where it is not connected
            return sock.detach()
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise ProtocolError(peer.label, f"what it passed is not a connected heartbeat socket: {error}") from error


def _unexpected(peer: Connection, frame: object) -> AioTransferError:
    if isinstance(frame, Goodbye):
        return PeerLostError(peer.label, f"it gave up: {clip(frame.reason)}")
    return ProtocolError(peer.label, f"{type(frame).__name__} while a path was being joined")


@contextlib.contextmanager
def owned_fds(fds: tuple[int, ...]) -> Iterator[None]:
    """Close received descriptors once their frame is handled: drivers keep duplicates."""
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)
