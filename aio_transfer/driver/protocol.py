"""Driver protocol: the methods that the engine calls on a transport, and the records they take and return.

A driver is synchronous and batch-oriented: no coroutine, no event loop and no native handle crosses the seam. The
engine numbers everything (peers, regions, transfers, counters), so that an id can cross threads where a reference
cannot. ``backends/core`` implements the protocol once for every native transport; a driver in pure Python is as good.

The engine calls what :class:`Driver` declares, and what :class:`SpinningDriver` and :class:`PreparedDriver` declare on
drivers that have these methods. Everything else it knows of a driver is in :class:`Capabilities`.

:source: docs/explanation/architecture.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from msgspec import Struct

from aio_transfer.driver.records import Access, CounterId, PeerNumber, RegionNumber, TransferId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = (
    "Capabilities",
    "Driver",
    "Endpoint",
    "LocalMemory",
    "PreparedDriver",
    "RemoteMemory",
    "SpinningDriver",
)


class LocalMemory(Struct, frozen=True, kw_only=True):
    """Our own memory, to be registered.

    :param fd: the memfd behind memory from :meth:`TransferEngine.allocate`, or a dma-buf; else ``None``
    :param fd_offset: offset of the memory in ``fd``, in bytes
    :param is_dmabuf: ``fd`` is the dma-buf of a device, and ``addr`` a device address; only drivers with
        :attr:`Capabilities.device_memory` get such memory
    :param cuda_device: index of the CUDA device that owns it; ``None``: this process can access it at ``addr``
    """

    addr: int
    nbytes: int
    access: Access
    fd: int | None = None
    fd_offset: int = 0
    is_dmabuf: bool = False
    cuda_device: int | None = None


class RemoteMemory(Struct, frozen=True, kw_only=True):
    """A peer's memory, to be named in runs.

    :param keys: the bytes that :meth:`Driver.register` returned at its owner
    :param fds: the descriptors that its owner sent, with :attr:`Capabilities.grants`; the driver dups them
    """

    peer: PeerNumber
    nbytes: int
    keys: bytes
    fds: tuple[int, ...] = ()


class Endpoint(Struct, frozen=True, kw_only=True):
    """One end of a connection, serialized for the peer.

    :param fds: only for transports within one host; they are sent with SCM_RIGHTS
    """

    blob: bytes
    fds: tuple[int, ...] = ()


class Capabilities(Struct, frozen=True, kw_only=True):
    """Properties of an open driver.

    :param backend: name of its backend, as in ``TransferEngine(backend="name")``
    :param provider: name of what carries the bytes below it; both ends of a connection must have the same
    :param rails: one name per NIC
    :param max_piece_nbytes: size of the largest single piece; the planner splits larger ones
    :param max_message_nbytes: 0 where :meth:`Driver.send` is not offered; the engine then sends messages itself
    :param same_host: it reaches only peers on this host
    :param grants: a peer's region needs file descriptors, which its owner sends over the control connection
    :param device_memory: a dma-buf can be registered
    :param protocol: how a write is done, as text for ``transfer.path``
    :param preference: of the drivers that reach a peer, the one with the highest preference is used
    :param spins: the user asked for busy-polling, so a wait calls :meth:`SpinningDriver.spin_wait` first
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
    preference: int = 0
    spins: bool = False


@runtime_checkable
class Driver(Protocol):
    """A transport: twelve methods, all called from the engine's thread. None may block.

    Every method may raise :class:`~aio_transfer.errors.AioTransferError`; later failures are reported as events.
    """

    def open(self) -> Capabilities:
        """Acquire the devices and start progress. Called once, first.

        :raises BackendUnavailableError: it cannot run here; ``hint`` is the command that fixes it
        """
        ...

    def register(self, region: RegionNumber, memory: LocalMemory | RemoteMemory) -> bytes:
        """Register memory under a number that runs can name.

        :returns: for our own memory, the keys that a peer needs; for a peer's, empty
        :raises StaleRegionError: the memory is a peer's, and deregistered
        """
        ...

    def deregister(self, region: RegionNumber) -> None:
        """Revoke a registration. For our own memory a RELEASED event follows, once no peer can reach it."""
        ...

    def connect(self, peer: PeerNumber, remote: Endpoint | None) -> Endpoint:
        """Create our end of a connection (``remote`` is ``None``), then connect it to the peer's end.

        :returns: our end, to be sent to the peer; the same from both calls
        """
        ...

    def disconnect(self, peer: PeerNumber, *, lost: bool) -> None:
        """End a connection. Its transfers end with PEER_LOST; FENCED follows once nothing of the peer can arrive.

        It may be called after a :meth:`connect` that raised; FENCED follows all the same.

        :param lost: the peer may be alive and write again: its access must be revoked. Otherwise it said goodbye,
            and what it had sent before is still counted.
        """
        ...

    def post(self, transfer: TransferId, runs: NDArray[np.void] | bytes, pieces: NDArray[np.void] | bytes) -> bool:
        """Start a batch of any size; the driver queues what does not fit into the device now.

        :param runs: RUN records, C-contiguous; valid until this returns
        :param pieces: PIECE records, C-contiguous; valid until this returns
        :returns: whether the batch has completed without failure, so that no event follows
        """
        ...

    def send(self, peer: PeerNumber, message: TransferId, payload: bytes) -> None:
        """Send one message of at most ``max_message_nbytes``; SENT, or TRANSFER with a failure, follows."""
        ...

    def expect(self, counter: CounterId, counts: int) -> int:
        """Arm a counter: one COUNTER event once its running total is at least ``counts``.

        :param counts: 0 disarms; −1 deletes the counter, and later counts for it are dropped
        :returns: the running total; when it is at least ``counts`` already, no event follows
        """
        ...

    def fileno(self) -> int:
        """Return a file descriptor that is readable while :meth:`drain` has events to return."""
        ...

    def drain(self, limit: int) -> Sequence[tuple[int, int, int, int, bytes]]:
        """Take up to ``limit`` events, as tuples like :class:`Event`. When fewer are returned, ``fileno`` is armed."""
        ...

    def statistics(self) -> Mapping[str, int]:
        """Return running totals, at least ``writes``, ``nbytes`` and ``counts``; and the number of open ``handles``."""
        ...

    def close(self) -> None:
        """Stop progress and free everything. Idempotent; never waits for a peer."""
        ...


@runtime_checkable
class SpinningDriver(Driver, Protocol):
    """Optional: a driver that can busy-poll a counter, for lower latency than waking the event loop.

    The engine calls it only where :attr:`Capabilities.spins` is true, which means that the user asked for
    ``progress="spin"``, and only in an engine with one driver.
    """

    def spin_wait(self, counter: CounterId, counts: int) -> int:
        """Busy-poll a counter until its running total is at least ``counts``, for at most 100 µs.

        It blocks the event loop for that long. The payload of every count returned is visible, as with :meth:`expect`.
        The engine calls it only for a counter that is not armed.

        :returns: the running total, which may be below ``counts``
        """
        ...


@runtime_checkable
class PreparedDriver(Driver, Protocol):
    """Optional: a driver that starts a prepared scatter, one transfer per peer, with one call."""

    def post_each(
        self, first: TransferId, runs: NDArray[np.void] | bytes, pieces: NDArray[np.void] | bytes
    ) -> Sequence[int]:
        """Start one transfer per run: run ``i`` is transfer ``first + i``, and fails or completes on its own.

        :param runs: RUN records as for :meth:`post`, each for another peer; no run waits for one before it
        :param pieces: PIECE records as for :meth:`post`
        :returns: the indices of the transfers for which a TRANSFER event follows; the others have completed without
            failure
        """
        ...
