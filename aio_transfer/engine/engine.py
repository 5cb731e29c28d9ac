"""``TransferEngine``: memory, counters and peers behind one object that belongs to one event loop."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final, Self

import anyio.lowlevel
import numpy as np

from aio_transfer.driver.records import MAX_COUNTER_ID, Access
from aio_transfer.engine.lifecycle import EngineLifecycle, EngineState
from aio_transfer.engine.settings import EngineSettings
from aio_transfer.errors import UsageError
from aio_transfer.groups.group import open_group
from aio_transfer.memory.allocation import allocate_array
from aio_transfer.observability.statistics import Statistics, paths_of
from aio_transfer.peers.connection import Peer
from aio_transfer.peers.messages import Messages
from aio_transfer.regions.descriptor import CounterRef
from aio_transfer.regions.region import Pages, RemotePages, RemoteSlice, Slice
from aio_transfer.transfers.planner import plan_pages, plan_read, plan_read_pages, plan_write
from aio_transfer.transfers.scatter import submit_scatter
from aio_transfer.transfers.validation import address_of, counter_of, require_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray

    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.groups.group import PeerGroup
    from aio_transfer.regions.region import Region, RemoteRegion
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("TransferEngine",)

_REMOTE: Final = Access.REMOTE_READ | Access.REMOTE_WRITE


class TransferEngine:
    """Moves memory between this process and others.

    .. code-block:: python

        async with TransferEngine() as engine:
            ...

    Use it from the event loop and thread that entered it, and not after a fork. Leaving the block says goodbye to
    every peer, stops all transfers and takes all memory back, whatever state peers are in.

    :param backend: ``"auto"`` (the fastest path per peer that both sides have), a name, or several; a name never falls
        back to another
    :param host: the address to listen on, also for ``tcp``'s data; loopback by default, so nothing is reachable from
        outside unasked
    :param port: TCP port of the control plane, 0 for any
    :param advertise: the address that peers dial, where it differs from ``host``
    :param secret: shared by all engines that may connect; at least 16 random bytes
    :param label: the engine's name in logs and errors; ``host:pid`` by default
    :param liveness_timeout_s: a peer that is silent for longer is lost, and its access revoked
    :param connect_deadline_s: for making one connection
    :param stall_s: after how long without progress a transfer or counter is reported
    :param grace_s: how long closing waits for transfers under way, and again for peers to acknowledge the goodbye
    :param options: per backend, its options by name; docs/reference lists them
    :raises UsageError: a setting is out of range
    """

    def __init__(  # noqa: PLR0913 - all optional, all keywords
        self,
        *,
        backend: str | Sequence[str] = "auto",
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str = "",
        secret: bytes | None = None,
        label: str = "",
        liveness_timeout_s: float = 1.5,
        connect_deadline_s: float = 10.0,
        stall_s: float = 10.0,
        grace_s: float = 1.0,
        options: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Check the settings; everything is acquired by ``async with``."""
        self._life = EngineLifecycle(
            EngineSettings(
                backend=backend,
                host=host,
                port=port,
                advertise=advertise,
                secret=secret,
                label=label,
                liveness_timeout_s=liveness_timeout_s,
                connect_deadline_s=connect_deadline_s,
                stall_s=stall_s,
                grace_s=grace_s,
                options=options or {},
            )
        )
        self._check = self._life.check

    # ------------------------------------------------------------------------------------------------------ lifetime

    async def __aenter__(self) -> Self:
        """Open the backends and begin to listen.

        :raises BackendUnavailableError: a requested backend cannot run here
        :raises UsageError: the engine was entered before
        """
        await self._life.start()
        # As attributes of its own: every write reads them.
        self._address = self._life.address
        self._operands = self._life.operands
        self._check_pair = self._operands.check_pair
        self._submission = self._life.submission
        return self

    @property
    def address(self) -> PeerInfo:
        """Identity and address of this engine: what peers find in its descriptors and dial.

        :raises UsageError: the engine was not entered yet
        """
        if not hasattr(self, "_address"):
            self._check()
        return self._address

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine; see :meth:`aclose`."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close: no more submits, a grace for transfers in flight, goodbye to every peer, all memory back. Idempotent.

        It always closes, at the latest after three times ``grace_s``. Transfers that are still in flight then fail
        with :class:`TransferAbortedError`, once nothing of them moves any more.

        :raises UsageError: called from another thread, event loop or process
        :cancellation: takes effect once the engine is closed, within the same bound
        """
        await self._life.aclose()

    def __del__(self) -> None:
        """Warn if it was left open; the native side stops with its last reference."""
        life = getattr(self, "_life", None)
        if life is not None and life.state is EngineState.OPEN and not life.loop.is_forked:
            warnings.warn(f"{self!r} was not closed: use 'async with'", ResourceWarning, stacklevel=1)

    def __repr__(self) -> str:
        """Show label, state and backends."""
        return f"<TransferEngine {self._life.label} {self._life.state.value} {'+'.join(self._life.drivers)}>"

    # -------------------------------------------------------------------------------------------------------- memory

    def allocate(
        self, shape: int | Sequence[int], dtype: DTypeLike = np.uint8, *, huge_pages: bool = False
    ) -> NDArray[Any]:
        """Return a zeroed array in memory that peers on this host can map: one copy per write, no system call.

        It lives as long as the array or a registration of it. Register it to make it reachable.

        :param shape: in elements of ``dtype``
        :raises UsageError: it would be empty
        :raises ProviderError: a limit on memory or file descriptors was hit
        """
        return allocate_array(shape, dtype, huge_pages=huge_pages)

    async def register(self, memory: object, *, access: Access = _REMOTE) -> Region:
        """Register memory: NICs reach it, and peers as far as ``access`` allows.

        The object is kept alive and in place until :meth:`Region.aclose`.

        Memory of a CUDA device is reached only by NICs, through a dma-buf, on backends that support device memory. No
        stream is waited for: a kernel must have finished writing before its result is sent.

        :param memory: a NumPy array, ``bytearray``, ``memoryview``, ``mmap``, anything with DLPack in host or CUDA
            memory, or a :class:`DmaBuf`
        :param access: what peers may do; ``Access.LOCAL`` for memory that is only a source
        :raises UsageError: not contiguous, empty, or read-only where peers are to write
        :raises UnsupportedError: memory of another device, or memory that no open backend reaches
        :raises BackendUnavailableError: CUDA memory without a CUDA driver, or a library that was built without CUDA
        :raises ProviderError: a backend refused it
        """
        self._check()
        await anyio.lowlevel.checkpoint()
        return self._life.registry.register(memory, access)

    # ------------------------------------------------------------------------------------------------------ counters

    def counter(
        self, number: int | None = None, *, sources: Iterable[PeerInfo | RemoteRegion | Peer] = ()
    ) -> ImmCounter:
        """Make a completion counter; give it to peers with ``region.descriptor(counter=counter)``.

        :param number: a well-known id below 2**23, agreed on beforehand: counts for it are kept from first sight,
            also from before this call. By default the engine picks one.
        :param sources: peers it depends on: their death wakes waiters even if they never wrote. Peers that announce
            counts are added automatically.
        :raises UsageError: the id is out of range
        :raises BusyError: a counter of this id is open
        """
        self._check()
        peers = [address_of(source) for source in sources]
        for peer in peers:
            self._operands.check_peer(peer)
        counter = self._life.counters.create(number, [peer.incarnation for peer in peers])
        for peer in peers:
            if peer.incarnation not in self._life.connections.peers:
                self._life.connections.ensure(peer)  # a death is noticed only over a connection
        return counter

    def counter_ref(self, peer: PeerInfo | Peer | RemoteRegion, number: int) -> CounterRef:
        """Name a peer's well-known counter.

        :raises UsageError: the id is out of range
        """
        if not isinstance(number, int) or not 0 <= number <= MAX_COUNTER_ID:
            raise UsageError(f"counter id {number!r}: allowed are 0 … {MAX_COUNTER_ID}")
        return CounterRef(address_of(peer), number)

    # ------------------------------------------------------------------------------------------------------- writing

    async def write(
        self, source: Slice, target: RemoteSlice, *, counter: CounterRef | None = None, counted: bool = True
    ) -> None:
        """Copy ``source`` into the peer's memory.

        One-sided: the peer's CPU takes no part, and its counter is raised by exactly one once the payload is visible
        there. ``source`` stays leased until this returns.

        :param source: slice of a registered region
        :param target: slice of equal length in a peer's region that grants REMOTE_WRITE
        :param counter: the peer's counter; by default that of the target's descriptor, if it has one
        :param counted: whether to raise a counter at all
        :raises UsageError: lengths differ, ``source`` is not of this engine, or the target grants no write
        :raises StaleRegionError: the peer has deregistered the target
        :raises PeerLostError: the peer died before the transfer was acknowledged
        :raises ProviderError: the transport failed
        :cancellation: the await ends at once; the write goes on and ``source`` stays leased
        :source: docs/explanation/contract.md, rules 1 to 3
        """
        await self.submit_write(source, target, counter=counter, counted=counted)

    def submit_write(
        self, source: Slice, target: RemoteSlice, *, counter: CounterRef | None = None, counted: bool = True
    ) -> Transfer:
        """Start a :meth:`write` and return at once."""
        self._check_pair(source, target, Slice, RemoteSlice)
        number = counter_of(target.region, counter) if counted else None
        return self._submission.submit("write", plan_write, source, target, number)

    async def write_pages(
        self, source: Pages, target: RemotePages, *, counter: CounterRef | None = None, counted: bool = True
    ) -> None:
        """Copy page ``i`` of ``source`` to page ``i`` of ``target``; each page counts once, in no order.

        :param source: ``region.pages(ids, page_nbytes)``
        :param target: ``remote.pages(ids, page_nbytes)``: as many, of the same size
        :raises UsageError: numbers or sizes differ; otherwise as :meth:`write`
        :cancellation: the await ends at once; the writes go on and the source stays leased
        """
        await self.submit_write_pages(source, target, counter=counter, counted=counted)

    def submit_write_pages(
        self, source: Pages, target: RemotePages, *, counter: CounterRef | None = None, counted: bool = True
    ) -> Transfer:
        """Start a :meth:`write_pages` and return at once."""
        self._check_pair(source, target, Pages, RemotePages)
        number = counter_of(target.region, counter) if counted else None
        return self._submission.submit("write_pages", plan_pages, source, target, number)

    async def scatter(
        self,
        sources: Sequence[Slice],
        targets: Sequence[RemoteSlice],
        *,
        counters: Sequence[CounterRef | None] | None = None,
    ) -> None:
        """Write slice ``i`` to target ``i``, each at its own peer; each target counts once.

        :param counters: per target; by default that of its descriptor
        :raises UsageError: lengths differ; otherwise as :meth:`write`
        :cancellation: the await ends at once; the writes go on and the sources stay leased
        """
        await self.submit_scatter(sources, targets, counters=counters)

    def submit_scatter(
        self,
        sources: Sequence[Slice],
        targets: Sequence[RemoteSlice],
        *,
        counters: Sequence[CounterRef | None] | None = None,
    ) -> Transfer:
        """Start a :meth:`scatter` and return at once."""
        return submit_scatter(self._submission, self._operands, sources, targets, counters)

    async def notify(self, counter: CounterRef) -> None:
        """Raise a peer's counter by one, without a payload.

        :param counter: from a descriptor (``remote.counter``), or :meth:`counter_ref`
        :raises PeerLostError: the peer died before it was acknowledged
        :cancellation: the await ends at once; the count still goes out
        """
        await self.submit_notify(counter)

    def submit_notify(self, counter: CounterRef) -> Transfer:
        """Start a :meth:`notify` and return at once."""
        self._check()
        self._operands.check_peer(counter.peer)
        return self._submission.notify(counter.peer, counter.id)

    async def read(self, target: Slice, source: RemoteSlice) -> None:
        """Copy a peer's memory into ``target``.

        :param target: slice of a registered, writable region of ours
        :param source: slice of equal length in a peer's region that grants REMOTE_READ
        :raises UsageError: lengths differ, ``target`` is read-only, or the source grants no read
        :raises StaleRegionError: the peer has deregistered the source
        :raises PeerLostError: the peer died before it was done
        :cancellation: the await ends at once; the read goes on and ``target`` stays leased
        """
        await self.submit_read(target, source)

    def submit_read(self, target: Slice, source: RemoteSlice) -> Transfer:
        """Start a :meth:`read` and return at once."""
        self._check_pair(target, source, Slice, RemoteSlice)
        return self._submission.submit("read", plan_read, target, source)

    async def read_pages(self, target: Pages, source: RemotePages) -> None:
        """Copy page ``i`` of ``source``, a peer's, to page ``i`` of ``target``.

        :param target: pages of a registered, writable region of this engine
        :param source: as many pages, of the same size, in a peer's region that grants REMOTE_READ
        :raises UsageError: numbers or sizes differ; otherwise as :meth:`read`
        :cancellation: the await ends at once; the reads go on and ``target`` stays leased
        """
        await self.submit_read_pages(target, source)

    def submit_read_pages(self, target: Pages, source: RemotePages) -> Transfer:
        """Start a :meth:`read_pages` and return at once."""
        self._check_pair(target, source, Pages, RemotePages)
        return self._submission.submit("read_pages", plan_read_pages, target, source)

    # --------------------------------------------------------------------------------------------------------- peers

    async def connect(self, peer: PeerInfo | RemoteRegion) -> Peer:
        """Connect to a peer now, instead of on first use.

        :raises PeerLostError: it cannot be reached, or is another incarnation than meant
        :raises AuthenticationError: one side lacks the secret
        :raises UnsupportedError: no backend reaches it
        :cancellation: the attempt goes on for others that wait for it
        """
        self._check()
        address = address_of(peer)
        self._operands.check_peer(address)
        connection = self._life.connections.ensure(address)
        await connection.wait_ready()
        return Peer(connection)

    async def disconnect(self, peer: PeerInfo | Peer | RemoteRegion) -> None:
        """Say goodbye to one peer. Waiters on either side that depend on the other get :class:`PeerLostError`."""
        self._check()
        connection = self._life.connections.peers.get(address_of(peer).incarnation)
        if connection is not None:
            await self._life.connections.say_goodbye(connection, self._life.settings.grace_s)

    async def group(self, peers: Sequence[PeerInfo | Peer | RemoteRegion], *, name: str = "") -> PeerGroup:
        """Connect to peers and form a group of them and this engine.

        :param peers: the other members, in any order
        :param name: distinguishes groups of the same members
        :raises UsageError: a peer is named twice, or is this engine
        :raises BusyError: this group is open here
        :raises PeerLostError: a member cannot be reached
        """
        self._check()
        addresses = [address_of(peer) for peer in peers]
        return await open_group(self._life.context, self._life.membership, addresses, name)

    async def send(self, peer: PeerInfo | Peer | RemoteRegion, payload: bytes) -> None:
        """Send a message. It waits while 64 messages to this peer are not consumed yet.

        :param payload: at most 1 MiB
        :raises UsageError: it is larger
        :raises PeerLostError: the peer is gone
        :cancellation: a message that waited for room is not sent
        """
        self._check()
        address = address_of(peer)
        self._operands.check_peer(address)
        require_message(payload)
        await self._life.messenger.send(self._life.connections.ensure(address), bytes(payload))

    def messages(self) -> Messages:
        """Iterate over the messages of all peers, until the engine closes. Each message goes to one iterator.

        :cancellation: a message that was not returned stays for the next iterator
        """
        self._check()
        return Messages(self._life.messenger)

    def statistics(self) -> Statistics:
        """Return a snapshot of the engine's objects and totals."""
        self._check()
        return Statistics(
            peers=paths_of(self._life.connections.peers.values()),
            regions=len(self._life.registry),
            counters=len(self._life.counters),
            transfers_in_flight=len(self._submission.pending()),
            stalls=self._life.stall_watch.count,
            drivers={name: dict(opened.driver.statistics()) for name, opened in self._life.drivers.items()},
        )
