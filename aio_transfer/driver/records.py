"""Ids, constants and records that cross the driver seam: pieces, runs and events."""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, NewType

import numpy as np

__all__ = (
    "ANY_REGION",
    "COUNTER_ID_BITS",
    "MAX_COUNTER_ID",
    "MAX_COUNTS_PER_IMMEDIATE",
    "PIECE",
    "PIECE_STRUCT",
    "PRIVATE_COUNTER_BIT",
    "RUN",
    "RUN_STRUCT",
    "Access",
    "CounterId",
    "Event",
    "EventKind",
    "Op",
    "PeerNumber",
    "PieceFlag",
    "RegionNumber",
    "Status",
    "TransferId",
)

PeerNumber = NewType("PeerNumber", int)
"""The engine's number for one connection to one peer incarnation; 32 bits, never reused."""
RegionNumber = NewType("RegionNumber", int)
"""The engine's number for a registration, of its own memory or of a peer's; 32 bits, never reused."""
TransferId = NewType("TransferId", int)
CounterId = NewType("CounterId", int)
COUNTER_ID_BITS: Final = 24
MAX_COUNTER_ID: Final = (1 << COUNTER_ID_BITS) - 1
PRIVATE_COUNTER_BIT: Final = 1 << 23
"""Ids with this bit are handed out by an engine (slot and generation inside); those below are well-known."""
MAX_COUNTS_PER_IMMEDIATE: Final = 256
"""An immediate is the counter's id in its low 24 bits, and how often it is raised, minus 1, in its high 8."""
ANY_REGION: Final = RegionNumber(0)
"""In a run: no payload. A bare notification names no memory."""


class Op(enum.IntEnum):
    """What a run of pieces does, seen from the initiator."""

    WRITE = 0
    READ = 1


class PieceFlag(enum.IntFlag):
    """How one piece is posted."""

    IMMEDIATE = 1
    """Raise the counter in ``immediate`` once the payload of this piece is visible."""
    DELIVERED = 2
    """Stop only when the payload is visible at the target, whichever rail a later piece takes to it."""


PIECE: Final = np.dtype(
    [("local_addr", "<u8"), ("remote_offset", "<u8"), ("nbytes", "<u8"), ("immediate", "<u4"), ("flags", "<u4")],
)
"""One posted unit. ``local_addr`` is absolute, ``remote_offset`` counts from the start of the peer's region."""
PIECE_STRUCT: Final = struct.Struct("<QQQII")
RUN: Final = np.dtype(
    [
        ("peer", "<u4"),
        ("rail", "<u2"),
        ("op", "<u2"),
        ("local_region", "<u4"),
        ("remote_region", "<u4"),
        ("first", "<u4"),
        ("count", "<u4"),
        ("after", "<u4"),
    ],
)
"""Pieces ``first … first + count − 1`` share a peer, a rail (the NIC they leave by) and both regions.

A run starts once the ``after`` runs just before it have stopped well, so that a chunk which was cut is counted when all
of it is there. No run is followed by two.
"""


RUN_STRUCT: Final = struct.Struct("<IHHIIIII")


class Access(enum.Flag):
    """What peers may do with a region."""

    LOCAL = 0
    REMOTE_READ = enum.auto()
    REMOTE_WRITE = enum.auto()


class EventKind(enum.IntEnum):
    """What happened below the seam."""

    TRANSFER = 0
    """Every piece of transfer ``id`` has stopped; ``status`` says how."""
    COUNTER = 1
    """Counter ``id`` has reached the threshold it was armed with; ``code`` is its running total."""
    MESSAGE = 2
    """Peer ``id`` sent ``payload``."""
    RELEASED = 3
    """Nothing can reach region ``id`` any more: its memory may be used for something else."""
    FENCED = 4
    """Nothing that peer ``id`` ever started can still land here, and what it had sent has been counted."""
    PEER_FAILED = 5
    """The data path to peer ``id`` is broken; ``code`` and ``payload`` say how."""
    SENT = 6
    """Message ``id`` has left; its bytes may be reused."""


class Status(enum.IntEnum):
    """How a transfer ended."""

    OK = 0
    PEER_LOST = 1
    STALE_REGION = 2
    PROVIDER = 3
    ABORTED = 4


class Event(NamedTuple):
    """One thing that happened. ``payload`` is a message's bytes, or a failure's native words."""

    kind: int
    id: int
    status: int
    code: int
    payload: bytes
