"""What proves that a side of a handshake holds the secret: HMAC-SHA256 over all that was said."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from aio_transfer.control.codec import encode
from aio_transfer.control.frames import Welcome

if TYPE_CHECKING:
    from aio_transfer.control.frames import Challenge, Hello
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("DIALER", "LISTENER", "make_transcript", "proof_fault", "prove")

DIALER: Final = b"aio-transfer control dialer"
LISTENER: Final = b"aio-transfer control listener"


def make_transcript(hello: Hello, challenge: Challenge) -> bytes:
    """Bind everything said so far. Each part is hashed alone first, so no boundary can be moved."""
    parts = (hashlib.sha256(encode(frame)).digest() for frame in (hello, challenge))
    return hashlib.sha256(b"".join(parts)).digest()


def prove(secret: bytes | None, role: bytes, transcript: bytes, info: PeerInfo | None = None) -> bytes:
    """Return the proof of a role, or the empty one where there is no secret.

    :param role: DIALER or LISTENER: a proof of one can never serve as the other
    :param info: what is said with the proof, and bound by it
    """
    if secret is None:
        return b""
    said = encode(Welcome(info, b"")) if info is not None else b""
    return hmac.digest(secret, role + b"\0" + transcript + said, "sha256")


def proof_fault(proof: bytes, wanted: bytes) -> str:
    """Say what is wrong with a proof, in words that fit both sides."""
    if not proof:
        return "the side being proven has no secret, and the other requires one"
    if not wanted:
        return "the side being proven has a secret, and the other has none"
    return "the two sides hold different secrets"
