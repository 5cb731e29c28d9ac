"""The seam: what the engine asks of a transport, and what a transport reports back.

A driver is synchronous and batch-oriented: no coroutine, no event loop and no native handle crosses the seam. The
engine numbers everything (peers, regions, transfers, counters), so that an id can cross threads where a reference
cannot. ``backends/core`` implements the protocol once for every native transport; a driver in pure Python is as good.

:source: design.md section 4
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
    "DriverFactory",
    "Endpoint",
    "LocalMemory",
    "RemoteMemory",
)


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
