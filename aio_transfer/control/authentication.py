"""Authentication of both sides of a connection: HMAC-SHA256 over the frames that they exchanged."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

from aio_transfer.control.codec import encode
from aio_transfer.control.frames import Welcome

if TYPE_CHECKING:
    from aio_transfer.control.frames import Challenge, Hello
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("DIALER", "LISTENER", "AttachProofs", "attach_proofs", "make_transcript", "proof_fault", "prove")

DIALER: Final = b"aio-transfer control dialer"
LISTENER: Final = b"aio-transfer control listener"
_HEARTBEAT_DIALER: Final = b"aio-transfer heartbeat dialer"
_HEARTBEAT_LISTENER: Final = b"aio-transfer heartbeat listener"


class AttachProofs(NamedTuple):
    """Proofs by which a heartbeat connection over TCP is attached to its session, one per side."""

    dialer: bytes
    listener: bytes


def make_transcript(hello: Hello, challenge: Challenge) -> bytes:
    """Hash the frames exchanged so far. Each is hashed alone first, so no boundary between them can be moved."""
    parts = [hashlib.sha256(encode(frame)).digest() for frame in (hello, challenge)]
    return hashlib.sha256(b"".join(parts)).digest()


def prove(secret: bytes | None, role: bytes, transcript: bytes, info: PeerInfo | None = None) -> bytes:
    """Return the proof of a role, or the empty one where there is no secret.

    :param role: DIALER or LISTENER: a proof of one can never serve as the other
    :param info: sent together with the proof, and covered by it
    """
    if secret is None:
        return b""
    covered = encode(Welcome(info, b"")) if info is not None else b""
    return hmac.digest(secret, role + b"\0" + transcript + covered, "sha256")


def attach_proofs(secret: bytes | None, transcript: bytes) -> AttachProofs:
    """Return the proofs for the heartbeat connection of the session with this transcript.

    Without a secret the key is empty. The proof then shows only that its sender has read the handshake, whose two
    nonces and token nobody can guess: as much as the network is trusted with anyway.
    """
    key = secret or b""
    return AttachProofs(
        dialer=hmac.digest(key, _HEARTBEAT_DIALER + b"\0" + transcript, "sha256"),
        listener=hmac.digest(key, _HEARTBEAT_LISTENER + b"\0" + transcript, "sha256"),
    )


def proof_fault(proof: bytes, wanted: bytes) -> str:
    """Describe what is wrong with a proof, in words that fit both sides."""
    if not proof:
        return "the side being proven has no secret, and the other requires one"
    if not wanted:
        return "the side being proven has a secret, and the other has none"
    return "the two sides hold different secrets"
