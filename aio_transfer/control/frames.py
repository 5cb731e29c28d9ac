"""Control frames: one bounded struct per frame, encoded in msgpack.

Every field has a bound, which :mod:`~aio_transfer.control.codec` checks on both sides, so that nothing a peer sends can
make us allocate more than one frame. A frame travels as an array whose first item is its tag. The tags and versions
of Hello, Challenge and AttachHeartbeat, and all of Refusal, never change: two versions find out by them that they
differ.

:source: docs/explanation/architecture.md
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from aio_transfer.driver.records import MAX_COUNTER_ID
from aio_transfer.topology.identity import INCARNATION_NBYTES
from aio_transfer.topology.peer_info import Incarnation, Number32, PeerInfo, Word

__all__ = (
    "FRAME_TYPES",
    "MAX_ANNOUNCED_COUNTERS",
    "MAX_FDS_PER_FRAME",
    "MAX_FRAME_NBYTES",
    "MAX_HANDSHAKE_NBYTES",
    "MAX_MESSAGE_NBYTES",
    "MAX_REASON_CHARS",
    "MEMBERSHIP_NBYTES",
    "NONCE_NBYTES",
    "PROOF_NBYTES",
    "PROTOCOL_VERSION",
    "Abort",
    "Answer",
    "AttachHeartbeat",
    "Challenge",
    "CountAnnouncement",
    "DeclaredLost",
    "Frame",
    "Goodbye",
    "GoodbyeAck",
    "GrantReply",
    "GrantRequest",
    "GroupJoin",
    "GroupLeave",
    "HeartbeatAttached",
    "Hello",
    "HelloProof",
    "Joined",
    "Message",
    "MessageAck",
    "Offer",
    "Refusal",
    "RefusalKind",
    "Revoked",
    "Welcome",
)

PROTOCOL_VERSION: Final = 2
MAX_MESSAGE_NBYTES: Final = 1 << 20
MAX_FRAME_NBYTES: Final = MAX_MESSAGE_NBYTES + (4 << 10)
MAX_HANDSHAKE_NBYTES: Final = 64 << 10
"""Limit of every frame until the handshake is over."""
MAX_ANNOUNCED_COUNTERS: Final = 4096
MAX_FDS_PER_FRAME: Final = 64
"""Well below the kernel's 253 in one message (SCM_MAX_FD)."""
NONCE_NBYTES: Final = 32
PROOF_NBYTES: Final = 32
MEMBERSHIP_NBYTES: Final = 16
MAX_REASON_CHARS: Final = 1024

RefusalKind: TypeAlias = Literal["version", "auth", "incarnation", "self", "duplicate", "session", "busy", "closing"]

_Reason: TypeAlias = Annotated[str, Meta(max_length=MAX_REASON_CHARS)]
_Blob: TypeAlias = Annotated[bytes, Meta(max_length=256 << 10)]
_Nonce: TypeAlias = Annotated[bytes, Meta(min_length=NONCE_NBYTES, max_length=NONCE_NBYTES)]
_Proof: TypeAlias = Annotated[bytes, Meta(max_length=PROOF_NBYTES)]
_AttachProof: TypeAlias = Annotated[bytes, Meta(min_length=PROOF_NBYTES, max_length=PROOF_NBYTES)]
_Version: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF)]
_Number63: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_CounterNumber: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_COUNTER_ID)]
_GroupKey: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
_MembershipId: TypeAlias = Annotated[bytes, Meta(min_length=MEMBERSHIP_NBYTES, max_length=MEMBERSHIP_NBYTES)]
_OptionalMembershipId: TypeAlias = Annotated[bytes, Meta(max_length=MEMBERSHIP_NBYTES)]
_FdCount: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_FDS_PER_FRAME)]


class _Strict(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every frame."""


class Hello(_Strict, frozen=True, tag=1):
    """First frame of the dialer.

    :param session: token of the session, chosen by the dialer
    :param expected: the incarnation that the dialer means to reach; empty for any
    """

    version: _Version
    info: PeerInfo
    nonce: _Nonce
    session: Incarnation
    expected: Annotated[bytes, Meta(max_length=INCARNATION_NBYTES)] = b""


class Challenge(_Strict, frozen=True, tag=2):
    """Reply to a Hello: all that a listener reveals to a dialer that has proven nothing."""

    version: _Version
    nonce: _Nonce


class HelloProof(_Strict, frozen=True, tag=3):
    """Proof that the dialer holds the secret; empty where it has none."""

    proof: _Proof


class Welcome(_Strict, frozen=True, tag=4):
    """Acceptance by the listener, with its identity and its proof that it holds the secret."""

    info: PeerInfo
    proof: _Proof


class Refusal(_Strict, frozen=True, tag=5):
    """End of a handshake, with its cause. Every version decodes it, so it never gets another field."""

    kind: RefusalKind
    reason: _Reason = ""
    version: _Version = PROTOCOL_VERSION


class AttachHeartbeat(_Strict, frozen=True, tag=6):
    """Only frame of the dialer on a heartbeat connection over TCP; it has one length, whatever it holds.

    :param incarnation: of the dialer
    :param session: token of the session that the heartbeat belongs to
    :param proof: HMAC over the handshake of that session
    """

    version: _Version
    incarnation: Incarnation
    session: Incarnation
    proof: _AttachProof


class HeartbeatAttached(_Strict, frozen=True, tag=7):
    """Reply to an AttachHeartbeat; the next byte in the stream is a heartbeat."""

    proof: _AttachProof


class Offer(_Strict, frozen=True, tag=16):
    """The dialer's end of a data path, with ``fds`` file descriptors; ``connection`` is the dialer's number for it."""

    backend: Word
    blob: _Blob
    fds: _FdCount = 0
    connection: Number32 = 0


class Answer(_Strict, frozen=True, tag=17):
    """The listener's end of the offered path, or the reason why there is none."""

    backend: Word
    blob: _Blob = b""
    fds: _FdCount = 0
    error: _Reason = ""
    connection: Number32 = 0


class Joined(_Strict, frozen=True, tag=18):
    """Last frame of path setup: both sides have joined the data path and may post.

    :param fds: 1 over AF_UNIX: the listener's end of the heartbeat's socket pair; 0 over TCP
    """

    connection: Number32 = 0
    fds: Annotated[int, Meta(ge=0, le=1)] = 0


class GrantRequest(_Strict, frozen=True, tag=19):
    """Request for the keys of a region, on transports where its descriptor does not suffice."""

    request: Number32
    region: Number32
    generation: _Number63
    backend: Word


class GrantReply(_Strict, frozen=True, tag=20):
    """Keys and ``fds`` file descriptors of a region; or ``ok=False`` and the reason."""

    request: Number32
    ok: bool
    keys: _Blob = b""
    nbytes: _Number63 = 0
    access: Number32 = 0
    fds: _FdCount = 0
    reason: _Reason = ""


class CountAnnouncement(_Strict, frozen=True, tag=21):
    """Counters of the receiver that the sender will raise; they fail when the sender is lost."""

    counters: Annotated[list[_CounterNumber], Meta(max_length=MAX_ANNOUNCED_COUNTERS)]


class Abort(_Strict, frozen=True, tag=22):
    """Failure of a counter: ``counts`` of its announced counts will never come."""

    counter: _CounterNumber
    operation: _Reason
    reason: _Reason
    counts: _Number63


class Message(_Strict, frozen=True, tag=23):
    """Application message."""

    payload: Annotated[bytes, Meta(max_length=MAX_MESSAGE_NBYTES)]


class GroupJoin(_Strict, frozen=True, tag=24):
    """The sender is in its first barrier of a group.

    :param membership: random identity of this membership: each time that the sender makes the group
    :param instance: the leader's membership that this one belongs to; empty while the sender waits for the leader's
    :param counters: the sender's two barrier counters, for even and odd epochs
    """

    group: _GroupKey
    membership: _MembershipId
    instance: _OptionalMembershipId
    counters: tuple[_CounterNumber, _CounterNumber]


class GroupLeave(_Strict, frozen=True, tag=25):
    """The sender has left a group, also if it never joined.

    :param membership: which of the sender's memberships has ended
    :param instance: the leader's membership that it belonged to, or will never belong to; empty if it knew none
    :param met: the receiver's membership that it knew and did not pair with; empty if it knew none
    :param epoch: barriers that it passed
    :param closing: the sender's engine closes, and a goodbye follows
    """

    group: _GroupKey
    membership: _MembershipId
    instance: _OptionalMembershipId = b""
    met: _OptionalMembershipId = b""
    epoch: _Number63 = 0
    closing: bool = False


class Goodbye(_Strict, frozen=True, tag=26):
    """End of posting by the sender; what it has posted still counts."""

    reason: _Reason = ""


class GoodbyeAck(_Strict, frozen=True, tag=27):
    """Reply to a Goodbye: nothing of its sender is in use any more."""


class DeclaredLost(_Strict, frozen=True, tag=28):
    """Notice that the receiver was silent for too long: its access has been revoked."""

    reason: _Reason = ""


class MessageAck(_Strict, frozen=True, tag=29):
    """Credit for ``count`` more messages: the application has taken as many of the receiver's."""

    count: Number32


class Revoked(_Strict, frozen=True, tag=30):
    """Notice that a granted region is being withdrawn: drop what refers to it."""

    region: Number32


Frame: TypeAlias = (
    Hello
    | Challenge
    | HelloProof
    | Welcome
    | Refusal
    | AttachHeartbeat
    | HeartbeatAttached
    | Offer
    | Answer
    | Joined
    | GrantRequest
    | GrantReply
    | CountAnnouncement
    | Abort
    | Message
    | GroupJoin
    | GroupLeave
    | Goodbye
    | GoodbyeAck
    | DeclaredLost
    | MessageAck
    | Revoked
)
FRAME_TYPES: Final = Frame.__args__
