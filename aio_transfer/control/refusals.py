"""Refusals: how a handshake fails with the same typed error on both sides.

The side that finds the fault sends a :class:`~aio_transfer.control.frames.Refusal` and closes; the other side turns the
frame into the error that the first one raised.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from typing import TYPE_CHECKING, NoReturn

import anyio

from aio_transfer.control.authentication import proof_fault
from aio_transfer.control.codec import VersionError, clip
from aio_transfer.control.fd_passing import close_fds
from aio_transfer.control.frames import PROTOCOL_VERSION, Goodbye, Refusal
from aio_transfer.errors import AioTransferError, AuthenticationError, ClosedError, PeerLostError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_transfer.control.connection import FrameConnection
    from aio_transfer.control.frames import Frame
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = (
    "RefusedError",
    "bounded",
    "check_incarnations",
    "check_proof",
    "check_user",
    "check_version",
    "error_of",
    "exchange",
    "raise_unexpected",
    "receive",
    "refuse",
)


class RefusedError(PeerLostError):
    """Refusal by a rule of the listener's engine; ``kind`` names the rule."""

    def __init__(self, peer: str, refusal: Refusal) -> None:
        """Build the message from the address and the reason of the listener."""
        self.kind = refusal.kind
        super().__init__(peer, f"it refused the connection ({refusal.kind}): {clip(refusal.reason)}")


@contextlib.contextmanager
def bounded(connection: FrameConnection, deadline_s: float, last_frame: Frame | None) -> Iterator[None]:
    """Limit a handshake to its deadline; on any failure raise a typed error and close the connection.

    :param last_frame: sent before closing, where the other side may still wait for an explanation
    """
    try:
        with anyio.fail_after(deadline_s):
            yield
    except TimeoutError as error:
        _close(connection, last_frame)
        raise PeerLostError(connection.peer, f"no handshake within {deadline_s:g} s") from error
    except anyio.ClosedResourceError as error:
        raise ClosedError(f"the connection to {connection.peer}") from error
    except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
        connection.close()
        raise PeerLostError(connection.peer, "it hung up during the handshake") from error
    except BaseException:
        _close(connection, last_frame)
        raise


def _close(connection: FrameConnection, last_frame: Frame | None) -> None:
    """Close, after a last frame where one can still be sent."""
    if last_frame is not None:
        with contextlib.suppress(AioTransferError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            connection.send_nowait(last_frame)
    connection.close()


async def exchange(connection: FrameConnection, frame: Frame) -> Frame:
    """Send a frame of the handshake and wait for the reply."""
    try:
        reply, fds = await connection.exchange(frame)
    except VersionError as error:
        raise _other_version(connection, error.version) from error
    close_fds(fds)
    return reply


async def receive(connection: FrameConnection) -> Frame:
    """Wait for a frame of a handshake, none of which carries descriptors."""
    try:
        frame, fds = await connection.receive()
    except VersionError as error:
        raise _other_version(connection, error.version) from error
    close_fds(fds)
    return frame


def raise_unexpected(connection: FrameConnection, frame: Frame, wanted: str) -> NoReturn:
    """Raise the error for a frame that is not the next one of the handshake.

    :raises AioTransferError: of the type that the other side raised, where the frame is its refusal
    """
    if isinstance(frame, Refusal):
        raise error_of(connection.peer, frame)
    if isinstance(frame, Goodbye):
        raise PeerLostError(connection.peer, clip(frame.reason))
    raise ProtocolError(connection.peer, f"{type(frame).__name__} where {wanted} was expected")


def error_of(peer: str, refusal: Refusal) -> AioTransferError:
    """Return the error for a refusal, equal to the one that the other side raised."""
    match refusal.kind:
        case "version":
            return VersionError(peer, refusal.version)
        case "auth":
            return AuthenticationError(peer, f"it refused: {clip(refusal.reason)}")
        case "incarnation":
            return _replaced(peer)
        case _:
            return RefusedError(peer, refusal)


def refuse(connection: FrameConnection, refusal: Refusal, error: AioTransferError | None = None) -> AioTransferError:
    """Send a refusal and close.

    :returns: the error to raise on this side, by default the one for the refusal
    """
    error = error or RefusedError(connection.peer, refusal)
    _close(connection, refusal)
    return error


def check_user(connection: FrameConnection) -> None:
    """Refuse another user's process at the other end of an AF_UNIX connection."""
    if connection.is_local and connection.peer_credentials().uid != os.geteuid():
        refusal = Refusal("auth", "the processes on both ends of an AF_UNIX connection must be the same user's")
        raise refuse(connection, refusal, AuthenticationError(connection.peer, refusal.reason))


def check_version(connection: FrameConnection, version: int) -> None:
    """Refuse another version of the protocol."""
    if version != PROTOCOL_VERSION:
        raise _other_version(connection, version)


def _other_version(connection: FrameConnection, version: int) -> AioTransferError:
    refusal = Refusal("version", f"version {PROTOCOL_VERSION} is spoken here")
    return refuse(connection, refusal, VersionError(connection.peer, version))


def check_proof(connection: FrameConnection, proof: bytes, wanted: bytes) -> None:
    """Refuse a wrong proof. The comparison takes constant time; the empty proof is that of a side without a secret."""
    if not hmac.compare_digest(proof, wanted):
        reason = proof_fault(proof, wanted)
        raise refuse(connection, Refusal("auth", reason), AuthenticationError(connection.peer, reason))


def check_incarnations(
    connection: FrameConnection, peer: PeerInfo, ours: PeerInfo, expected: bytes, reached: bytes
) -> None:
    """Refuse a connection to this very engine, and one that was meant for another incarnation."""
    if peer.incarnation == ours.incarnation:
        raise refuse(connection, Refusal("self", "this engine dialed itself"))
    if expected and expected != reached:
        raise refuse(connection, Refusal("incarnation"), _replaced(connection.peer))


def _replaced(peer: str) -> PeerLostError:
    return PeerLostError(peer, "its process was replaced by a new incarnation")
