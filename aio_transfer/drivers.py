"""The seam: what the engine asks of a transport, and what a transport reports back.

A driver is synchronous and batch-oriented: no coroutine, no event loop and no native handle crosses the seam. The
engine numbers everything (peers, regions, transfers, counters), so that an id can cross threads where a reference
cannot. ``backends/core`` implements the protocol once for every native transport; a driver in pure Python is as good.

:source: design.md section 4
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, NewType, Protocol, runtime_checkable

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

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
    "Capabilities",
    "CounterId",
    "Driver",
    "DriverFactory",
    "Endpoint",
    "Event",
    "EventKind",
    "LocalMemory",
    "Op",
    "PeerNumber",
    "PieceFlag",
    "RegionNumber",
    "RemoteMemory",
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


class LocalMemory(Struct, frozen=True, kw_only=True):
    """Our own memory, about to be registered.

    :param fd: the memfd that backs it, when it came from :meth:`TransferEngine.allocate`, or a dma-buf; else ``None``
    :param fd_offset: where in ``fd`` it begins, in bytes
    :param is_dmabuf: ``fd`` is a device's dma-buf, and ``addr`` the device's name for it: only a driver with
        :attr:`Capabilities.device_memory` is given such
    :param cuda_device: which CUDA device's it is; ``None``: this process reaches it at ``addr``
    """

    addr: int
    nbytes: int
    access: Access
    fd: int | None = None
    fd_offset: int = 0
    is_dmabuf: bool = False
    cuda_device: int | None = None


class RemoteMemory(Struct, frozen=True, kw_only=True):
    """A peer's memory, about to be named in runs.

    :param keys: the bytes its owner's :meth:`Driver.register` returned
    :param fds: what its owner sent along, where :attr:`Capabilities.grants` says that there is something; the driver
        dups them
    """

    peer: PeerNumber
    nbytes: int
    keys: bytes
    fds: tuple[int, ...] = ()


class Endpoint(Struct, frozen=True, kw_only=True):
    """One end of a connection, in a form that can travel.

    :param fds: only on transports within one host; they travel by SCM_RIGHTS
    """

    blob: bytes
    fds: tuple[int, ...] = ()


class Capabilities(Struct, frozen=True, kw_only=True):
    """What an open driver can do.

    :param backend: the driver's name, as in ``backend="shm"``
    :param provider: what carries the bytes below it (``"memfd"``, ``"tcp"``, ``"efa"`` …)
    :param rails: one name per NIC
    :param max_piece_nbytes: the largest single piece; the planner splits above it
    :param max_message_nbytes: 0 where :meth:`Driver.send` is not offered
    :param same_host: reaches only peers on this host
    :param grants: a peer's region comes with fds, which its owner sends over the control connection
    :param device_memory: a dma-buf can be registered
    :param protocol: how a write is done, in words, for ``transfer.path``
    """

    backend: str
    provider: str
    rails: tuple[str, ...]
    max_piece_nbytes: int
    max_message_nbytes: int = 0
    same_host: bool = False
    grants: bool = False
    device_memory: bool = False
    protocol: str = ""


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


@runtime_checkable
class Driver(Protocol):
    """A transport. Twelve methods, all called from the engine's thread, none of which may block.

    Every method may raise :class:`~aio_transfer.errors.AioTransferError`; what fails later comes as an event.
    """

    def open(self) -> Capabilities:
        """Acquire the devices and start progress. Called once, first.

        :raises BackendUnavailableError: nothing usable here; the error says what would help
        """
        ...

    def register(self, region: RegionNumber, memory: LocalMemory | RemoteMemory) -> bytes:
        """Make memory nameable in runs.

        :returns: for our own memory, the keys a peer needs; for a peer's, nothing
        :raises StaleRegionError: ``memory`` is a peer's, and gone
        """
        ...

    def deregister(self, region: RegionNumber) -> None:
        """Take a registration back. For our own memory a RELEASED event follows, once no peer can reach it."""
        ...

    def connect(self, peer: PeerNumber, remote: Endpoint | None) -> Endpoint:
        """Make our end of a connection (``remote`` is ``None``), then join it to the peer's.

        :returns: our end, to be sent to the peer; the same on both calls
        """
        ...

    def disconnect(self, peer: PeerNumber, *, lost: bool) -> None:
        """End a connection; its transfers end with PEER_LOST, and a FENCED event follows when that is certain.

        It may follow a :meth:`connect` that raised; FENCED comes all the same.

        :param lost: the peer may be alive and write again: its access must be revoked. Otherwise it said goodbye,
            and what it had sent before is still counted.
        """
        ...

    def post(self, transfer: TransferId, runs: NDArray[np.void] | bytes, pieces: NDArray[np.void] | bytes) -> bool:
        """Start a batch. It is never refused for its size; what does not fit now flows later.

        :param runs: RUN records, C-contiguous; not kept
        :param pieces: PIECE records, C-contiguous; not kept
        :returns: the batch is already complete and well, and no event follows
        """
        ...

    def send(self, peer: PeerNumber, message: TransferId, payload: bytes) -> None:
        """Send one message of at most ``max_message_nbytes``; SENT (or TRANSFER with a failure) follows."""
        ...

    def expect(self, counter: CounterId, counts: int) -> int:
        """Arm a counter: one COUNTER event once its running total is at least ``counts``.

        :param counts: 0 disarms, −1 forgets the counter: later arrivals for it are dropped
        :returns: the running total now; when it is already enough, no event follows
        """
        ...

    def fileno(self) -> int:
        """Return an fd that is readable while :meth:`drain` has something to give."""
        ...

    def drain(self, limit: int) -> Sequence[tuple[int, int, int, int, bytes]]:
        """Take up to ``limit`` events, in the form of :class:`Event`. When fewer come, ``fileno`` is armed."""
        ...

    def statistics(self) -> Mapping[str, int]:
        """Return running totals: at least ``writes``, ``nbytes``, ``counts``, and open native handles."""
        ...

    def close(self) -> None:
        """Stop progress and free everything. Idempotent; never waits for a peer."""
        ...


class DriverFactory(Protocol):
    """What a backend's module exposes: keyword options in, an unopened driver out."""

    def __call__(self, **options: object) -> Driver:
        """Make a driver; nothing is acquired yet."""
        ...
