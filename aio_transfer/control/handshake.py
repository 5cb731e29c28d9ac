"""Handshake: mutual identification and authentication, before anything else is exchanged.

.. code-block:: text

    dialer                                           listener
    Hello(version, info, nonce, session, expected) →
                                                   ← Challenge(version, nonce)
    HelloProof(HMAC(secret, "dialer", T))          →
                                                   ← Welcome(info, HMAC(secret, "listener", T, info)) or Refusal

``T`` is the SHA-256 of the Hello and the Challenge. The dialer proves itself first: it has chosen its peer, while a
listener can be dialed by anyone, and until then reveals nothing but its version. Each proof names the role of its
maker and covers both nonces, so neither a replay nor a reflection proves anything; and no engine welcomes its own
incarnation. Either side gives up at its deadline.

Over TCP the heartbeat of a session has a connection of its own, which is attached by one frame instead of another
handshake; over AF_UNIX a socket pair is passed and nothing of this is needed:

.. code-block:: text

    AttachHeartbeat(version, incarnation, session, HMAC(secret, "heartbeat dialer", T))  →
                                         ←  HeartbeatAttached(HMAC(secret, "heartbeat listener", T)) or Refusal

``T`` is that of the session, so only its dialer can attach, and it can attach once: the same frame sent again finds
no session that waits for a heartbeat.

The secret proves membership when the connection is made. What follows is neither encrypted nor authenticated, and
a listener that answers a dialer can try guesses at a weak secret offline: make it long and random, and the network
yours.

Over AF_UNIX both processes must have the same effective user id, also with a secret, root included: what follows
hands out memory, and processes of different users that want that have TCP.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aio_transfer.control.authentication import DIALER, LISTENER, AttachProofs, attach_proofs, make_transcript, prove
from aio_transfer.control.frames import (
    MAX_FRAME_NBYTES,
    NONCE_NBYTES,
    PROTOCOL_VERSION,
    AttachHeartbeat,
    Challenge,
    Goodbye,
    HeartbeatAttached,
    Hello,
    HelloProof,
    Refusal,
    Welcome,
)
from aio_transfer.control.refusals import (
    bounded,
    check_incarnations,
    check_proof,
    check_user,
    check_version,
    exchange,
    raise_unexpected,
    receive,
    refuse,
)
from aio_transfer.errors import AuthenticationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.control.connection import FrameConnection
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = (
    "HANDSHAKE_DEADLINE_S",
    "Credentials",
    "HeartbeatConnection",
    "Session",
    "attach_heartbeat",
    "client_handshake",
    "server_handshake",
)

HANDSHAKE_DEADLINE_S: Final = 10.0


class Credentials:
    """Identity of one engine, and the secret that proves its membership."""

    __slots__ = ("info", "secret")

    def __init__(self, *, info: PeerInfo, secret: bytes | None = None) -> None:
        """Refuse an empty secret.

        :param secret: shared by all engines that may connect; ``None`` where the network is trusted
        :raises UsageError: it is empty
        """
        if secret is not None and not secret:
            msg = "an empty secret proves nothing: give None, or at least 16 random bytes"
            raise UsageError(msg)
        self.info = info
        self.secret = secret


class Session(Struct, frozen=True, kw_only=True):
    """Control connection after its handshake.

    :param peer: identity of the other end
    :param token: name of the session, chosen by the dialer
    :param proofs: what attaches a heartbeat connection to the session
    :param is_dialer: this side dialed
    """

    connection: FrameConnection
    peer: PeerInfo
    token: bytes
    proofs: AttachProofs
    is_dialer: bool


class HeartbeatConnection(Struct, frozen=True, kw_only=True):
    """Heartbeat connection over TCP whose dialer has proven that it belongs to a session."""

    connection: FrameConnection
    incarnation: bytes
    token: bytes


async def client_handshake(
    connection: FrameConnection,
    credentials: Credentials,
    *,
    session: bytes,
    expected: bytes = b"",
    deadline_s: float = HANDSHAKE_DEADLINE_S,
) -> Session:
    """Run the dialer's side of a handshake. On any failure the connection is closed.

    :param session: token of the session: 16 new random bytes
    :param expected: the incarnation meant, or empty for any
    :raises AuthenticationError: one side lacks the secret, holds another, or is another user's
    :raises ProtocolError: the listener speaks another version (VersionError), or something else
    :raises RefusedError: the listener's engine does not want the session
    :raises PeerLostError: it is another incarnation, or hung up, or let the deadline pass
    :raises ClosedError: the connection was closed here meanwhile
    :cancellation: the listener is notified, in case it has accepted already
    """
    with bounded(connection, deadline_s, last_frame=Goodbye("the dialer gave the handshake up")):
        check_user(connection)
        hello = Hello(
            version=PROTOCOL_VERSION,
            info=credentials.info,
            nonce=os.urandom(NONCE_NBYTES),
            session=session,
            expected=expected,
        )
        challenge = await exchange(connection, hello)
        if not isinstance(challenge, Challenge):
            raise_unexpected(connection, challenge, "Challenge")
        check_version(connection, challenge.version)
        transcript = make_transcript(hello, challenge)
        welcome = await exchange(connection, HelloProof(prove(credentials.secret, DIALER, transcript)))
        if not isinstance(welcome, Welcome):
            raise_unexpected(connection, welcome, "Welcome")
        check_proof(connection, welcome.proof, prove(credentials.secret, LISTENER, transcript, welcome.info))
        check_incarnations(connection, welcome.info, credentials.info, expected, welcome.info.incarnation)
        proofs = attach_proofs(credentials.secret, transcript)
        return _begin_session(connection, welcome.info, session, proofs, is_dialer=True)


async def server_handshake(
    connection: FrameConnection,
    credentials: Credentials,
    *,
    decide: Callable[[Hello], Refusal | None] = lambda _hello: None,
    heartbeat_proofs: Callable[[AttachHeartbeat], AttachProofs | None] = lambda _attach: None,
    deadline_s: float = HANDSHAKE_DEADLINE_S,
) -> Session | HeartbeatConnection:
    """Run the listener's side of a handshake, or attach a heartbeat. On any failure the connection is closed.

    Both callables are called once the dialer has proven itself, and when they accept, the result comes back without a
    checkpoint in between: what they saw still holds.

    :param decide: returns the reason to refuse a dialer, or ``None``
    :param heartbeat_proofs: returns the proofs of the session that waits for this heartbeat, or ``None``. It is called
        before the proof is checked and must not change anything
    :raises AuthenticationError: one side lacks the secret, holds another, or is another user's
    :raises ProtocolError: the dialer speaks another version (VersionError), or something else
    :raises RefusedError: ``decide`` refused the session, or no session waits for this heartbeat
    :raises PeerLostError: the dialer means another incarnation, or hung up, or let the deadline pass
    :raises ClosedError: the connection was closed here meanwhile
    :cancellation: the dialer is notified
    """
    with bounded(connection, deadline_s, last_frame=Refusal("closing", "the handshake was given up")):
        check_user(connection)
        first = await receive(connection)
        if isinstance(first, AttachHeartbeat):
            return _accept_heartbeat(connection, first, heartbeat_proofs(first))
        if not isinstance(first, Hello):
            raise_unexpected(connection, first, "Hello")
        return await _accept_dialer(connection, credentials, first, decide)


async def _accept_dialer(
    connection: FrameConnection,
    credentials: Credentials,
    hello: Hello,
    decide: Callable[[Hello], Refusal | None],
) -> Session:
    check_version(connection, hello.version)
    challenge = Challenge(PROTOCOL_VERSION, os.urandom(NONCE_NBYTES))
    reply = await exchange(connection, challenge)
    if not isinstance(reply, HelloProof):
        raise_unexpected(connection, reply, "HelloProof")
    transcript = make_transcript(hello, challenge)
    check_proof(connection, reply.proof, prove(credentials.secret, DIALER, transcript))
    check_incarnations(connection, hello.info, credentials.info, hello.expected, credentials.info.incarnation)
    refusal = decide(hello)
    if refusal is not None:
        raise refuse(connection, refusal)
    proof = prove(credentials.secret, LISTENER, transcript, credentials.info)
    connection.send_nowait(Welcome(credentials.info, proof))
    proofs = attach_proofs(credentials.secret, transcript)
    return _begin_session(connection, hello.info, hello.session, proofs, is_dialer=False)


def _begin_session(
    connection: FrameConnection, peer: PeerInfo, token: bytes, proofs: AttachProofs, *, is_dialer: bool
) -> Session:
    connection.frame_limit_nbytes = MAX_FRAME_NBYTES
    connection.peer = f"{peer.label or 'unnamed'} ({connection.peer})"
    return Session(connection=connection, peer=peer, token=token, proofs=proofs, is_dialer=is_dialer)


async def attach_heartbeat(
    connection: FrameConnection,
    session: Session,
    *,
    incarnation: bytes,
    deadline_s: float = HANDSHAKE_DEADLINE_S,
) -> None:
    """Attach a new TCP connection to a session as its heartbeat. On any failure the connection is closed.

    :param session: dialed by this side
    :param incarnation: of this side
    :raises RefusedError: the listener knows no session that waits for this heartbeat
    :raises AuthenticationError: the listener does not belong to the session
    :raises PeerLostError: it hung up, or let the deadline pass
    :cancellation: the connection is closed without a frame: the listener may already read heartbeats from it
    """
    with bounded(connection, deadline_s, last_frame=None):
        reply = await exchange(
            connection, AttachHeartbeat(PROTOCOL_VERSION, incarnation, session.token, session.proofs.dialer)
        )
        if not isinstance(reply, HeartbeatAttached):
            raise_unexpected(connection, reply, "HeartbeatAttached")
        # Constant time; and no refusal is sent, as the connection carries heartbeats by now.
        if not hmac.compare_digest(reply.proof, session.proofs.listener):
            raise AuthenticationError(connection.peer, "it does not belong to the session of this heartbeat")


def _accept_heartbeat(
    connection: FrameConnection, attach: AttachHeartbeat, proofs: AttachProofs | None
) -> HeartbeatConnection:
    check_version(connection, attach.version)
    # One refusal for both: a stranger does not learn which sessions exist. The comparison takes constant time.
    if proofs is None or not hmac.compare_digest(attach.proof, proofs.dialer):
        raise refuse(connection, Refusal("session", "no such session waits for a heartbeat"))
    connection.send_nowait(HeartbeatAttached(proofs.listener))
    return HeartbeatConnection(connection=connection, incarnation=attach.incarnation, token=attach.session)
