"""What two engines can say to each other: one bounded struct per frame, in msgpack.

Every field has a bound, which :mod:`~aio_transfer.control.codec` checks on both sides, so that nothing a peer sends can
make us allocate more than one frame. A frame travels as an array whose first item is its tag. The tags and versions
of Hello and Challenge, and all of Refusal, never change: they are how two versions tell each other that they differ.

:source: design.md section 4, "Control plane"
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
    "Hello",
    "HelloProof",
    "Joined",
    "Message",
    "MessageAck",
    "Offer",
    "Refusal",
    "RefusalKind",
    "Revoked",
    "Role",
    "Welcome",
)

PROTOCOL_VERSION: Final = 1
MAX_MESSAGE_NBYTES: Final = 1 << 20
MAX_FRAME_NBYTES: Final = MAX_MESSAGE_NBYTES + (4 << 10)
MAX_HANDSHAKE_NBYTES: Final = 64 << 10
"""Before a peer has proven itself its frames are bounded by this."""
MAX_ANNOUNCED_COUNTERS: Final = 4096
MAX_FDS_PER_FRAME: Final = 64
"""Well below the kernel's 253 in one message (SCM_MAX_FD)."""
NONCE_NBYTES: Final = 32
PROOF_NBYTES: Final = 32
MEMBERSHIP_NBYTES: Final = 16
MAX_REASON_CHARS: Final = 1024

Role: TypeAlias = Literal["control", "heartbeat"]
RefusalKind: TypeAlias = Literal["version", "auth", "incarnation", "self", "duplicate", "session", "busy", "closing"]

_Reason: TypeAlias = Annotated[str, Meta(max_length=MAX_REASON_CHARS)]
_Blob: TypeAlias = Annotated[bytes, Meta(max_length=256 << 10)]
_Nonce: TypeAlias = Annotated[bytes, Meta(min_length=NONCE_NBYTES, max_length=NONCE_NBYTES)]
_Proof: TypeAlias = Annotated[bytes, Meta(max_length=PROOF_NBYTES)]
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
    """The dialer's first frame.

    :param expected: the incarnation the dialer means to reach, or empty for whoever is there
    :param session: the dialer's token; a pulse connection gives that of the session it belongs to
    """

    version: _Version
    role: Role
    info: PeerInfo
    nonce: _Nonce
    session: Incarnation
    expected: Annotated[bytes, Meta(max_length=INCARNATION_NBYTES)] = b""


class Challenge(_Strict, frozen=True, tag=2):
    """All that a listener says of itself to a dialer that has proven nothing."""

    version: _Version
    nonce: _Nonce


class HelloProof(_Strict, frozen=True, tag=3):
    """The dialer's proof that it holds the secret; empty where it has none."""

    proof: _Proof


class Welcome(_Strict, frozen=True, tag=4):
    """The listener accepts, introduces itself and proves that it holds the secret too."""

    info: PeerInfo
    proof: _Proof


class Refusal(_Strict, frozen=True, tag=5):
    """The handshake ends here. Understood by every version, so never add a field to it."""

    kind: RefusalKind
    reason: _Reason = ""
    version: _Version = PROTOCOL_VERSION


class Offer(_Strict, frozen=True, tag=16):
    """Our end of a data path, with ``fds`` file descriptors. ``connection`` is the offerer's number for it."""

    backend: Word
    blob: _Blob
    fds: _FdCount = 0
    connection: Number32 = 0


class Answer(_Strict, frozen=True, tag=17):
    """The other end of the offered path, or why there is none."""

    backend: Word
    blob: _Blob = b""
    fds: _FdCount = 0
    error: _Reason = ""
    connection: Number32 = 0


class Joined(_Strict, frozen=True, tag=18):
    """The offerer has joined the answer's end: both may post."""

    connection: Number32 = 0


class GrantRequest(_Strict, frozen=True, tag=19):
    """Ask for what it takes to reach a region, where a descriptor alone does not suffice."""

    request: Number32
    region: Number32
    generation: _Number63
    backend: Word


class GrantReply(_Strict, frozen=True, tag=20):
    """The keys, and ``fds`` file descriptors, of a region; or ``ok=False`` and why not."""

    request: Number32
    ok: bool
    keys: _Blob = b""
    nbytes: _Number63 = 0
    access: Number32 = 0
    fds: _FdCount = 0
    reason: _Reason = ""


class CountAnnouncement(_Strict, frozen=True, tag=21):
    """The sender will raise these counters of the receiver's; when it is lost they are poisoned."""

    counters: Annotated[list[_CounterNumber], Meta(max_length=MAX_ANNOUNCED_COUNTERS)]


class Abort(_Strict, frozen=True, tag=22):
    """``counts`` promised counts of ``counter`` will never come: poison it."""

    counter: _CounterNumber
    operation: _Reason
    reason: _Reason
    counts: _Number63


class Message(_Strict, frozen=True, tag=23):
    """A message of the application's."""

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
    """The sender will post nothing more; what it has posted still counts."""

    reason: _Reason = ""


class GoodbyeAck(_Strict, frozen=True, tag=27):
    """Nothing of the goodbye's sender is in use any more."""


class DeclaredLost(_Strict, frozen=True, tag=28):
    """The receiver was silent for too long: its access has been revoked."""

    reason: _Reason = ""


class MessageAck(_Strict, frozen=True, tag=29):
    """The application has taken ``count`` more of the receiver's messages: as many more may come."""

    count: Number32


class Revoked(_Strict, frozen=True, tag=30):
    """A region that was granted is being taken back: drop what refers to it."""

    region: Number32


Frame: TypeAlias = (
    Hello
    | Challenge
    | HelloProof
    | Welcome
    | Refusal
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
