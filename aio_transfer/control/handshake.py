"""How two engines find out who the other is, before anything else is said.

.. code-block:: text

    dialer                                      listener
    Hello(version, info, nonce, expected)  →
                                           ←    Challenge(version, nonce)
    HelloProof(HMAC(secret, "dialer", T))  →
                                           ←    Welcome(info, HMAC(secret, "listener", T, info)) or Refusal

``T`` is the SHA-256 of the Hello and the Challenge. The dialer proves itself first: it chose to call, while a listener
is called by anyone and until then tells nothing of itself but its version. Each proof names the role of its maker and
covers both nonces, so neither a replay nor a reflection of a peer's own words proves anything; and nobody welcomes its
own incarnation. Either side gives up at its deadline.

The secret proves membership when the connection is made. What follows is neither encrypted nor authenticated, and
whoever answers a dialer can try guesses at a weak secret offline: make it long and random, and the network yours.

Over AF_UNIX both processes must have the same effective user id, also with a secret, root included: what follows
hands out memory, and processes of different users that want that have TCP.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
from msgspec import Struct

from aio_transfer.control.authentication import DIALER, LISTENER, make_transcript, proof_fault, prove
from aio_transfer.control.codec import VersionError, clip
from aio_transfer.control.fd_passing import close_fds
from aio_transfer.control.frames import (
    MAX_FRAME_NBYTES,
    NONCE_NBYTES,
    PROTOCOL_VERSION,
    Challenge,
    Frame,
    Goodbye,
    Hello,
    HelloProof,
    Refusal,
    Role,
    Welcome,
)
from aio_transfer.errors import (
    AioTransferError,
    AuthenticationError,
    ClosedError,
    PeerLostError,
    ProtocolError,
    UsageError,
)
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aio_transfer.control.connection import FrameConnection

__all__ = ("HANDSHAKE_DEADLINE_S", "Credentials", "RefusedError", "Session", "answer", "call")

HANDSHAKE_DEADLINE_S: Final = 10.0
_FrameT = TypeVar("_FrameT", Hello, Challenge, HelloProof, Welcome)


class Credentials:
    """What one side brings to a handshake."""

    __slots__ = ("info", "secret")

    def __init__(self, *, info: PeerInfo, secret: bytes | None = None) -> None:
        """Refuse a secret that is none.

        :param secret: shared by all who may connect; ``None`` where the network is trusted
        :raises UsageError: it is empty
        """
        if secret is not None and not secret:
            msg = "an empty secret proves nothing: give None, or at least 16 random bytes"
            raise UsageError(msg)
        self.info = info
        self.secret = secret


class Session(Struct, frozen=True, kw_only=True):
    """A connection whose other end has been accepted.

    :param peer: who is there
    :param token: the dialer's name for the session; a pulse connection has its session's
    :param is_dialer: we dialed
    """

    connection: FrameConnection
    peer: PeerInfo
    role: Role
    token: bytes
    is_dialer: bool


class RefusedError(PeerLostError):
    """The listener's engine refused the session; ``kind`` says which of its rules did."""

    def __init__(self, peer: str, refusal: Refusal) -> None:
        """Name the address and the listener's words."""
        self.kind = refusal.kind
        super().__init__(peer, f"it refused the connection ({refusal.kind}): {clip(refusal.reason)}")


async def call(
    connection: FrameConnection,
    credentials: Credentials,
    *,
    session: bytes,
    role: Role = "control",
    expected: bytes = b"",
    deadline_s: float = HANDSHAKE_DEADLINE_S,
) -> Session:
    """Shake hands as the dialer. On any failure the connection is closed.

    :param session: 16 bytes that name the session, new for a control connection
    :param expected: the incarnation meant, or empty for whoever is there
    :raises AuthenticationError: one side lacks the secret, holds another, or is another user's
    :raises ProtocolError: the listener speaks another version (VersionError), or something else
    :raises RefusedError: the listener's engine does not want the session
    :raises PeerLostError: it is another incarnation, or hung up, or let the deadline pass
    :raises ClosedError: the connection was closed here meanwhile
    :cancellation: the listener is told, in case it has accepted already
    """
    with _bounded(connection, deadline_s, farewell=Goodbye("the dialer gave the handshake up")):
        _check_user(connection)
        hello = Hello(
            version=PROTOCOL_VERSION,
            role=role,
            info=credentials.info,
            nonce=os.urandom(NONCE_NBYTES),
            session=session,
            expected=expected,
        )
        challenge = await _exchange(connection, hello, Challenge)
        _check_version(connection, challenge.version)
        transcript = make_transcript(hello, challenge)
        proof = prove(credentials.secret, DIALER, transcript)
        welcome = await _exchange(connection, HelloProof(proof), Welcome)
        _check_proof(connection, welcome.proof, prove(credentials.secret, LISTENER, transcript, welcome.info))
        _check_incarnations(connection, welcome.info, credentials.info, expected, welcome.info.incarnation)
        return _accept(connection, welcome.info, hello, is_dialer=True)


async def answer(
    connection: FrameConnection,
    credentials: Credentials,
    *,
    decide: Callable[[Hello], Refusal | None] = lambda _hello: None,
    deadline_s: float = HANDSHAKE_DEADLINE_S,
) -> Session:
    """Shake hands as the listener. On any failure the connection is closed.

    :param decide: asked once the dialer has proven itself, and last: when it returns ``None`` the session comes
        back without a checkpoint in between, so what it saw is still so
    :raises AuthenticationError: one side lacks the secret, holds another, or is another user's
    :raises ProtocolError: the dialer speaks another version (VersionError), or something else
    :raises RefusedError: ``decide`` did not want the session
    :raises PeerLostError: the dialer means another incarnation, or hung up, or let the deadline pass
    :raises ClosedError: the connection was closed here meanwhile
    :cancellation: the dialer is told
    """
    with _bounded(connection, deadline_s, farewell=Refusal("closing", "the handshake was given up")):
        _check_user(connection)
        hello = await _expect(connection, Hello)
        _check_version(connection, hello.version)
        challenge = Challenge(PROTOCOL_VERSION, os.urandom(NONCE_NBYTES))
        proof = (await _exchange(connection, challenge, HelloProof)).proof
        transcript = make_transcript(hello, challenge)
        _check_proof(connection, proof, prove(credentials.secret, DIALER, transcript))
        _check_incarnations(connection, hello.info, credentials.info, hello.expected, credentials.info.incarnation)
        refusal = decide(hello)
        if refusal is not None:
            raise _refuse(connection, refusal, RefusedError(connection.peer, refusal))
        mine = prove(credentials.secret, LISTENER, transcript, credentials.info)
        connection.send_nowait(Welcome(credentials.info, mine))
        return _accept(connection, hello.info, hello, is_dialer=False)


def _accept(connection: FrameConnection, peer: PeerInfo, hello: Hello, *, is_dialer: bool) -> Session:
    connection.frame_limit_nbytes = MAX_FRAME_NBYTES
    connection.peer = f"{peer.label or 'unnamed'} ({connection.peer})"
    return Session(connection=connection, peer=peer, role=hello.role, token=hello.session, is_dialer=is_dialer)


@contextlib.contextmanager
def _bounded(connection: FrameConnection, deadline_s: float, farewell: Frame) -> Iterator[None]:
    """Give the handshake its deadline, and every way it can fail a type and a closed connection."""
    try:
        with anyio.fail_after(deadline_s):
            yield
    except TimeoutError as error:
        _hang_up(connection, farewell)
        raise PeerLostError(connection.peer, f"no handshake within {deadline_s:g} s") from error
    except anyio.ClosedResourceError as error:
        raise ClosedError(f"the connection to {connection.peer}") from error
    except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
        connection.close()
        raise PeerLostError(connection.peer, "it hung up during the handshake") from error
    except BaseException:
        _hang_up(connection, farewell)
        raise


def _hang_up(connection: FrameConnection, farewell: Frame) -> None:
    """Close with a word that says why, if one can still be said."""
    with contextlib.suppress(AioTransferError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        connection.send_nowait(farewell)
    connection.close()


async def _exchange(connection: FrameConnection, frame: Frame, kind: type[_FrameT]) -> _FrameT:
    # A peer that has refused and closed may be found out by the send: its refusal is still there to be read.
    with contextlib.suppress(anyio.BrokenResourceError):
        await connection.send(frame)
    return await _expect(connection, kind)


async def _expect(connection: FrameConnection, kind: type[_FrameT]) -> _FrameT:
    try:
        frame, fds = await connection.receive()
    except VersionError as error:
        raise _other_version(connection, error.version) from error
    close_fds(fds)  # nothing in a handshake announces any that we would want
    if isinstance(frame, kind):
        return frame
    if isinstance(frame, Refusal):
        raise _refused(connection.peer, frame)
    if isinstance(frame, Goodbye):
        raise PeerLostError(connection.peer, clip(frame.reason))
    raise ProtocolError(connection.peer, f"{type(frame).__name__} where {kind.__name__} was expected")


def _refused(peer: str, refusal: Refusal) -> AioTransferError:
    """Turn the other side's words into the error that it saw too."""
    match refusal.kind:
        case "version":
            return VersionError(peer, refusal.version)
        case "auth":
            return AuthenticationError(peer, f"it refused: {clip(refusal.reason)}")
        case "incarnation":
            return _replaced(peer)
        case _:
            return RefusedError(peer, refusal)


def _refuse(connection: FrameConnection, refusal: Refusal, error: AioTransferError) -> AioTransferError:
    """Tell the other side why, hang up, and give back what to raise here."""
    _hang_up(connection, refusal)
    return error


def _check_user(connection: FrameConnection) -> None:
    if connection.is_local and connection.peer_credentials().uid != os.geteuid():
        refusal = Refusal("auth", "the processes on both ends of an AF_UNIX connection must be the same user's")
        raise _refuse(connection, refusal, AuthenticationError(connection.peer, refusal.reason))


def _check_version(connection: FrameConnection, version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise _other_version(connection, version)


def _other_version(connection: FrameConnection, version: int) -> AioTransferError:
    refusal = Refusal("version", f"version {PROTOCOL_VERSION} is spoken here")
    return _refuse(connection, refusal, VersionError(connection.peer, version))


def _check_proof(connection: FrameConnection, proof: bytes, wanted: bytes) -> None:
    """Compare in constant time; the empty proof is that of a side without a secret."""
    if not hmac.compare_digest(proof, wanted):
        reason = proof_fault(proof, wanted)
        raise _refuse(connection, Refusal("auth", reason), AuthenticationError(connection.peer, reason))


def _check_incarnations(
    connection: FrameConnection, peer: PeerInfo, ours: PeerInfo, expected: bytes, reached: bytes
) -> None:
    if peer.incarnation == ours.incarnation:
        refusal = Refusal("self", "this engine dialed itself")
        raise _refuse(connection, refusal, RefusedError(connection.peer, refusal))
    if expected and expected != reached:
        raise _refuse(connection, Refusal("incarnation"), _replaced(connection.peer))


def _replaced(peer: str) -> PeerLostError:
    return PeerLostError(peer, "its process was replaced by a new incarnation")
