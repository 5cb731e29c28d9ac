"""The transfer engine: memory, counters and peers behind one object that belongs to one event loop."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import anyio.lowlevel
import numpy as np

from aio_transfer.context import EngineContext
from aio_transfer.control.handshake import Credentials
from aio_transfer.control.listener import Listener
from aio_transfer.counters.counter import ImmCounter
from aio_transfer.counters.table import CounterTable
from aio_transfer.driver.backend_registry import OpenDriver, open_drivers
from aio_transfer.driver.records import Access
from aio_transfer.engine.event_router import EventRouter
from aio_transfer.errors import ClosedError, UsageError
from aio_transfer.groups.group import PeerGroup, open_group
from aio_transfer.groups.membership import MembershipTable
from aio_transfer.memory.buffers import allocate
from aio_transfer.observability.stalls import StallWatch
from aio_transfer.observability.statistics import Statistics, paths_of
from aio_transfer.peers.connection import Peer
from aio_transfer.peers.connection_manager import ConnectionManager
from aio_transfer.peers.messages import Messages, Messenger
from aio_transfer.regions.descriptor import CounterRef
from aio_transfer.regions.region import Pages, Region, RemotePages, RemoteRegion, RemoteSlice, Slice
from aio_transfer.regions.region_registry import RegionRegistry
from aio_transfer.runtime.event_loop import EventLoop, current_event_loop
from aio_transfer.topology.identity import host_identity, new_incarnation
from aio_transfer.topology.peer_info import PeerInfo
from aio_transfer.transfers.planner import plan_pages, plan_read, plan_read_pages, plan_write
from aio_transfer.transfers.scatter import submit_scatter
from aio_transfer.transfers.submission import Submission
from aio_transfer.transfers.validation import address_of, counter_of, kind_of, require_kinds, require_other

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray

    from aio_transfer.transfers.transfer import Transfer

__all__ = ("TransferEngine",)

_LOGGER: Final = logging.getLogger(__name__)
_MAX_LABEL: Final = 128
_REMOTE: Final = Access.REMOTE_READ | Access.REMOTE_WRITE


class TransferEngine:
    """Moves memory between this process and others.

    .. code-block:: python

        async with TransferEngine() as engine:
            ...

    Use it from the event loop and thread that entered it, and not after a fork. Leaving the block says goodbye to
    every peer, stops all transfers and takes all memory back, whatever state peers are in.

    :param backend: ``"auto"`` (the fastest path per peer: shm on this host, else what both sides have), a name, or
        several; a name never falls back to another
    :param host: the address to listen on, also for ``tcp``'s data; loopback by default, so nothing is reachable from
        outside unasked
    :param port: TCP port of the control plane, 0 for any
    :param advertise: the address peers dial, where it differs from ``host``
    :param secret: shared by all engines that may connect; at least 16 random bytes
    :param label: what logs and errors call this engine; ``host:pid`` by default
    :param liveness_timeout_s: a peer that is silent for longer is lost, and its access revoked
    :param connect_deadline_s: for making one connection
    :param stall_s: after how long without progress a transfer or counter is reported
    :param grace_s: how long closing waits for transfers under way, and again for peers to acknowledge the goodbye
    :param options: per backend, what its own page lists
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
        """Remember the settings; everything is acquired by ``async with``."""
        if min(liveness_timeout_s, connect_deadline_s, stall_s) <= 0 or grace_s < 0:
            raise UsageError("timeouts are positive")
        if not isinstance(port, int) or not 0 <= port < 1 << 16:
            raise UsageError(f"a port is 0 … 65535, not {port!r}")
        if secret is not None and not secret:
            raise UsageError("an empty secret proves nothing: give None, or at least 16 random bytes")
        if len(label) > _MAX_LABEL or not (label.isascii() and (label.isprintable() or not label)):
            raise UsageError(f"a label is printable ASCII of at most {_MAX_LABEL} characters")
        self._backend = backend
        self._host = host
        self._port = port
        self._advertise = advertise
        self._secret = secret
        self._label = label or f"{socket.gethostname()[:48]}:{os.getpid()}"
        self._liveness_timeout_s = liveness_timeout_s
        self._connect_deadline_s = connect_deadline_s
        self._stall_s = stall_s
        self._grace_s = grace_s
        self._options = options or {}
        self._state = "new"
        self._drivers: dict[str, OpenDriver] = {}
        self._listener: Listener | None = None
        self._stopping: anyio.Event | None = None
        self._closed = anyio.Event()

    # ------------------------------------------------------------------------------------------------------ lifetime

    async def __aenter__(self) -> Self:
        """Open the backends and begin to listen.

        :raises BackendUnavailableError: what was asked for cannot run here
        :raises UsageError: the engine was entered before
        """
        if self._state != "new":
            raise UsageError("an engine is entered once")
        self._loop: EventLoop = current_event_loop()
        self._state = "open"
        try:
            await self._start()
        except BaseException:
            self._state = "closed"
            with anyio.CancelScope(shield=True):
                await self._stop()
            raise
        return self

    async def _start(self) -> None:
        incarnation = new_incarnation()
        listener = self._listener = await Listener.bind(incarnation, host=self._host, port=self._port)
        wildcard = listener.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
        # Behind it: whoever cannot listen at that address is told so by the same error, whatever the backend.
        found_at = self._advertise if wildcard else listener.host
        self._drivers = open_drivers(self._backend, self._options, host=found_at)
        self.address: PeerInfo = PeerInfo(
            incarnation=incarnation,
            host=host_identity(),
            label=self._label,
            pid=os.getpid(),
            tcp_host=self._advertise or (socket.gethostname() if wildcard else listener.host),
            tcp_port=listener.port,
            unix=listener.unix,
            backends={name: one.capabilities.provider for name, one in self._drivers.items()},
        )
        """Who this engine is and where it can be dialed: what peers find in its descriptors."""
        await self._start_host()
        credentials = Credentials(info=self.address, secret=self._secret)
        dispatcher = EventRouter(self._loop)
        self.connections = ConnectionManager(
            self._loop,
            dispatcher,
            self._drivers,
            credentials,
            liveness_timeout_s=self._liveness_timeout_s,
            deadline_s=self._connect_deadline_s,
        )
        self.counters = CounterTable(self._loop, self.check, [one.driver for one in self._drivers.values()])
        self.poster = Submission(self._loop, self.connections, self._tasks)
        self._registry = RegionRegistry(
            self.check, self.check_place, self.address, self._drivers, self.connections, stall_s=self._stall_s
        )
        self.poster.partial = self._registry.partial
        self._messenger = Messenger(self.connections, self.poster.ids.__next__)
        self._context = EngineContext(
            loop=self._loop,
            address=self.address,
            connections=self.connections,
            counters=self.counters,
            submission=self.poster,
            check=self.check,
            require_registered=self._require_ours,
        )
        self._groups = MembershipTable(self._context)
        self._watch = StallWatch(
            self._stall_s,
            lambda: tuple(self.poster.parts.items()),
            lambda: self.counters,
            self.connections.label_of,
            lambda: sum(one.driver.statistics().get("writes", 0) for one in self._drivers.values()),
        )
        self.poster.wake_stall_watch = self.counters.on_wait = self._watch.wake
        dispatcher.attach(
            connections=self.connections,
            poster=self.poster,
            counters=self.counters,
            registry=self._registry,
            messenger=self._messenger,
            groups=self._groups,
            close=self._begin_close,
        )
        self._dispatcher = dispatcher
        for one in self._drivers.values():
            dispatcher.watch(one)
        self.connections.start(self._tasks)
        self._tasks.start_soon(self._serve, listener, credentials)
        self._tasks.start_soon(self._watch.run)

    async def _start_host(self) -> None:
        """Begin a task group in a task of its own: it must outlive any caller's scope, and close from any task."""
        ready, stopping, self._stopped = anyio.Event(), anyio.Event(), anyio.Event()
        self._stopping = stopping

        async def host() -> None:
            try:
                async with anyio.create_task_group() as self._tasks:
                    ready.set()
                    await stopping.wait()
                    self._tasks.cancel_scope.cancel()
            except Exception:
                _LOGGER.exception("a background task of %r failed", self)
            finally:
                self._stopped.set()

        self._loop.spawn(host, f"aio_transfer.engine.engine({self._label})")
        await ready.wait()

    async def _serve(self, listener: Listener, credentials: Credentials) -> None:
        await listener.serve(self.connections.on_session, credentials, decide=self.connections.decide)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine; see :meth:`aclose`."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop: no more submits, a grace for what is under way, goodbye to every peer, all memory back. Idempotent.

        It always closes, at the latest after three times ``grace_s``. Transfers that are still under way then fail
        with :class:`TransferAbortedError`, once nothing of them moves any more.

        :raises UsageError: called from another thread, event loop or process
        :cancellation: comes into effect once it is closed, within the same bound
        """
        if self._state == "new":
            self._state = "closed"
            return
        self.check_place()
        self._begin_close()
        cancelled: BaseException | None = None
        while not self._closed.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await self._closed.wait()
            except anyio.get_cancelled_exc_class() as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _begin_close(self) -> None:
        if self._state == "open":
            self._state = "closing"
            # In a task of its own: a native Task.cancel passes through anyio's shields, and would leave it half closed.
            self._loop.spawn(self._close, f"aio_transfer.close({self._label})")

    async def _close(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await self._say_goodbye()
        finally:
            self._state = "closed"
            self.poster.abandon("the engine was closed")
            self._registry.close()
            self._messenger.close()
            self._closed.set()

    async def _say_goodbye(self) -> None:
        # A loop that is shut down around us cancels each of these once; the next one then still has its turn.
        cancelled = anyio.get_cancelled_exc_class()
        with contextlib.suppress(cancelled):
            await self.poster.settle(self._grace_s)
        self._groups.close()
        with contextlib.suppress(cancelled):
            await self.connections.aclose(self._grace_s)
        self.counters.close()
        for one in self._drivers.values():
            self._dispatcher.unwatch(one)
        with contextlib.suppress(cancelled):
            await self._stop()

    async def _stop(self) -> None:
        """Undo what was started, however far that came."""
        if self._listener is not None:
            await self._listener.aclose()
        for one in self._drivers.values():
            one.driver.close()  # from here nothing of ours moves, and no peer's key is good
        if self._stopping is not None:
            self._stopping.set()
            await self._stopped.wait()

    def check(self) -> None:
        """Refuse use before open, after close, and from elsewhere.

        :raises ClosedError: it is not open
        :raises UsageError: another thread, event loop or process
        """
        if self._listener is not None:
            self._loop.check("the engine")
        if self._state != "open":
            raise ClosedError("the engine")

    def check_place(self) -> None:
        """Refuse use from another thread or event loop, and in a forked child.

        :raises UsageError: saying which
        """
        if self._listener is not None:  # entered
            self._loop.check("the engine")

    def __del__(self) -> None:
        """Warn if it was left open; the native side stops with its last reference."""
        if getattr(self, "_state", "") == "open" and not self._loop.is_forked:
            warnings.warn(f"{self!r} was not closed: use 'async with'", ResourceWarning, stacklevel=1)

    def __repr__(self) -> str:
        """Say who and in what state."""
        return f"<TransferEngine {self._label} {self._state} {'+'.join(self._drivers)}>"

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
        extents = (shape,) if isinstance(shape, int) else tuple(shape)
        kind = np.dtype(dtype)
        nbytes = int(np.prod(extents, dtype=np.int64)) * kind.itemsize
        return allocate(nbytes, huge_pages=huge_pages).array(extents, kind)

    async def register(self, memory: object, *, access: Access = _REMOTE) -> Region:
        """Make memory reachable by NICs, and by peers as far as ``access`` says.

        The object is kept alive and in place until :meth:`Region.aclose`.

        Memory of a CUDA device is reached by NICs alone, through a dma-buf: over ``verbs`` and libfabric's ``efa``. Its
        streams are not waited for: what a kernel is to have written must have been written before it is sent.

        :param memory: a NumPy array, ``bytearray``, ``memoryview``, ``mmap``, anything with DLPack in host or CUDA
            memory, or a :class:`DmaBuf`
        :param access: what peers may do; ``Access.LOCAL`` for memory that is only a source
        :raises UsageError: not contiguous, empty, or read-only where peers are to write
        :raises UnsupportedError: memory of another device, or which no open backend reaches
        :raises BackendUnavailableError: CUDA memory, and no CUDA driver, or a libfabric that was built without
        :raises ProviderError: a backend refused it
        """
        self.check()
        await anyio.lowlevel.checkpoint()
        return self._registry.register(memory, access)

    # ------------------------------------------------------------------------------------------------------ counters

    def counter(
        self, number: int | None = None, *, sources: Iterable[PeerInfo | RemoteRegion | Peer] = ()
    ) -> ImmCounter:
        """Make a completion counter; hand it to peers with ``region.descriptor(counter=counter)``.

        :param number: a well-known id below 2**23, agreed on beforehand: counts for it are kept from first sight,
            also from before this call. By default the engine picks one.
        :param sources: peers it depends on: their death wakes waiters even if they never wrote. Peers that do write
            are added by themselves.
        :raises UsageError: the id is out of range
        :raises BusyError: a counter of this id is open
        """
        self.check()
        peers = [address_of(source) for source in sources]
        for peer in peers:
            self._check_other(peer)
        counter = self.counters.create(number, [peer.incarnation for peer in peers])
        for peer in peers:
            if peer.incarnation not in self.connections.peers:
                self.connections.ensure(peer)  # a death can be noticed only over a connection
        return counter

    def counter_ref(self, peer: PeerInfo | Peer | RemoteRegion, number: int) -> CounterRef:
        """Name a peer's well-known counter.

        :raises UsageError: the id is out of range
        """
        if not isinstance(number, int) or not 0 <= number < 1 << 24:
            raise UsageError(f"a counter id has 24 bits, not {number!r}")
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
        :source: design.md section 2
        """
        await self.submit_write(source, target, counter=counter, counted=counted)

    def submit_write(
        self, source: Slice, target: RemoteSlice, *, counter: CounterRef | None = None, counted: bool = True
    ) -> Transfer:
        """Start what :meth:`write` does, and return at once."""
        self._check_pair(source, target, Slice, RemoteSlice)
        number = counter_of(target.region, counter) if counted else None
        return self.poster.submit("write", plan_write, source, target, number)

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
        """Start what :meth:`write_pages` does, and return at once."""
        self._check_pair(source, target, Pages, RemotePages)
        number = counter_of(target.region, counter) if counted else None
        return self.poster.submit("write_pages", plan_pages, source, target, number)

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
        """Start what :meth:`scatter` does, and return at once."""
        return submit_scatter(self._context, sources, targets, counters)

    async def notify(self, counter: CounterRef) -> None:
        """Raise a peer's counter by one, without a payload.

        :param counter: from a descriptor (``remote.counter``), or :meth:`counter_ref`
        :raises PeerLostError: the peer died before it was acknowledged
        :cancellation: the await ends at once; the count still goes out
        """
        await self.submit_notify(counter)

    def submit_notify(self, counter: CounterRef) -> Transfer:
        """Start what :meth:`notify` does, and return at once."""
        self.check()
        self._check_other(counter.peer)
        return self.poster.notify(counter.peer, counter.id)

    async def read(self, target: Slice, source: RemoteSlice) -> None:
        """Copy a peer's memory into ``target``.

        :param target: slice of a registered, writable region of ours
        :param source: slice of equal length in a peer's region that grants REMOTE_READ
        :raises UsageError: lengths differ, our memory is read-only, or the source grants no read
        :raises StaleRegionError: the peer has deregistered the source
        :raises PeerLostError: the peer died before it was done
        :cancellation: the await ends at once; the read goes on and ``target`` stays leased
        """
        await self.submit_read(target, source)

    def submit_read(self, target: Slice, source: RemoteSlice) -> Transfer:
        """Start what :meth:`read` does, and return at once."""
        self._check_pair(target, source, Slice, RemoteSlice)
        return self.poster.submit("read", plan_read, target, source)

    def submit_read_pages(self, target: Pages, source: RemotePages) -> Transfer:
        """Start to copy page ``i`` of ``source`` to page ``i`` of ``target``; otherwise as :meth:`read`."""
        self._check_pair(target, source, Pages, RemotePages)
        return self.poster.submit("read_pages", plan_read_pages, target, source)

    def _check_pair(
        self, local: Slice | Pages, remote: RemoteSlice | RemotePages, ours: type[Slice | Pages], theirs: type
    ) -> None:
        """Check both ends of an operation as far as no peer is needed for it."""
        self.check()
        if type(local) is not ours or type(remote) is not theirs:
            require_kinds(local, remote, ours, theirs)
        if local.region.owner is not self._registry:
            self._require_ours(local.region)
        peer = remote.region.peer
        if peer.incarnation == self.address.incarnation:
            self._check_other(peer)

    def _require_ours(self, region: Region) -> None:
        if region.owner is not self._registry:
            region.require_open()
            raise UsageError(f"{region.name} is not registered with this engine")

    def _check_other(self, peer: PeerInfo) -> None:
        require_other(peer, self.address)

    # --------------------------------------------------------------------------------------------------------- peers

    async def connect(self, peer: PeerInfo | RemoteRegion) -> Peer:
        """Connect to a peer now, instead of on first use.

        :raises PeerLostError: it cannot be reached, or is another incarnation than meant
        :raises AuthenticationError: one side lacks the secret
        :raises UnsupportedError: no backend reaches it
        :cancellation: the attempt goes on for others that wait for it
        """
        self.check()
        address = address_of(peer)
        self._check_other(address)
        connection = self.connections.ensure(address)
        await connection.wait_ready()
        return Peer(connection)

    async def disconnect(self, peer: PeerInfo | Peer | RemoteRegion) -> None:
        """Say goodbye to one peer. Its waiters that depend on us, and ours on it, get :class:`PeerLostError`."""
        self.check()
        connection = self.connections.peers.get(address_of(peer).incarnation)
        if connection is not None:
            await self.connections.say_goodbye(connection, self._grace_s)

    async def group(self, peers: Sequence[PeerInfo | Peer | RemoteRegion], *, name: str = "") -> PeerGroup:
        """Connect to some peers and make a group of them and this engine.

        :param peers: the other members, in any order
        :param name: tells groups of the same members apart
        :raises UsageError: a peer is named twice, or is this engine
        :raises BusyError: this group is open here
        :raises PeerLostError: a member cannot be reached
        """
        self.check()
        addresses = [address_of(peer) for peer in peers]
        return await open_group(self._context, self._groups, addresses, name)

    async def send(self, peer: PeerInfo | Peer | RemoteRegion, payload: bytes) -> None:
        """Send a message. It waits while the peer has 64 of ours that it has not consumed.

        :param payload: at most 1 MiB
        :raises UsageError: it is larger
        :raises PeerLostError: the peer is gone
        :cancellation: a message that waited for room is not sent
        """
        self.check()
        address = address_of(peer)
        self._check_other(address)
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise UsageError(f"a message is bytes, not {kind_of(payload)}")
        await self._messenger.send(self.connections.ensure(address), bytes(payload))

    def messages(self) -> Messages:
        """Iterate over the messages of all peers, until the engine closes. Each is given to one iterator.

        :cancellation: a message that was not returned stays for the next iterator
        """
        self.check()
        return Messages(self._messenger)

    def statistics(self) -> Statistics:
        """Return a snapshot of what there is and what has moved."""
        self.check()
        return Statistics(
            peers=paths_of(self.connections.peers.values()),
            regions=len(self._registry),
            counters=sum(1 for _ in self.counters),
            transfers_under_way=sum(1 for _ in self.poster.under_way),
            stalls=self._watch.count,
            drivers={name: dict(one.driver.statistics()) for name, one in self._drivers.items()},
        )
