"""From a checked operation to a posted batch, and from its end back to whoever awaits it.

A submit is never refused for being large or early: while the connection or the peer's region is not there yet, a
background task waits for it and posts then.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

import anyio

from aio_transfer.control.codec import clip
from aio_transfer.control.frames import Abort, CountAnnouncement, GrantReply, GrantRequest
from aio_transfer.driver.error_mapping import as_typed_error, error_factory, transfer_error
from aio_transfer.driver.protocol import RemoteMemory
from aio_transfer.driver.records import ANY_REGION, PeerNumber, RegionNumber, TransferId
from aio_transfer.driver.transport_path import TransportPath
from aio_transfer.errors import (
    AioTransferError,
    ClosedError,
    StaleRegionError,
    TransferAbortedError,
    UnsupportedError,
    UsageError,
)
from aio_transfer.transfers.planner import plan_notify
from aio_transfer.transfers.striping import Route
from aio_transfer.transfers.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anyio.abc import TaskGroup

    from aio_transfer.backends.native import NativeDriver
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.regions.lease import Leased
    from aio_transfer.regions.region import Pages, RemotePages, RemoteRegion, RemoteSlice, Slice
    from aio_transfer.runtime.event_loop import EventLoop
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.striping import Plan

    Planner = Callable[[Sequence[Route], int], Plan]

__all__ = ("MAX_PREPARED", "AnnouncedCounts", "Part", "PeerBatch", "ResolvedRoute", "Submission")

_PROBE: Final = Route(peer=PeerNumber(0), remote_region=ANY_REGION, rails=1, max_piece_nbytes=2**62)
"""Plans against it only find out whether the arguments are good."""
MAX_PREPARED: Final = 1 << 16
"""So many targets a prepared scatter may have: each has an id of its own, and they are taken all at once."""
LocalT = TypeVar("LocalT", "Slice", "Pages")
RemoteT = TypeVar("RemoteT", "RemoteSlice", "RemotePages")
_RegionKey = tuple[bytes, int, int]
AnnouncedCounts = tuple[tuple[int, int], ...]
"""The peer's counters a batch raises, each with how many counts."""


class ResolvedRoute(NamedTuple):
    """How a region of a peer's is reached, all names resolved."""

    peer: Connection
    one: OpenDriver
    route: Route
    path: TransportPath


class PeerBatch(NamedTuple):
    """What one operation does with one peer of several.

    :param remotes: whose routes ``plan`` is called with, in this order
    """

    peer: PeerInfo
    remotes: Sequence[RemoteRegion]
    plan: Planner
    promises: AnnouncedCounts


class Part(NamedTuple):
    """A batch under way."""

    transfer: Transfer
    peer: Connection
    promises: AnnouncedCounts
    since: float


def _lease(leases: tuple[Leased, ...]) -> None:
    """Lease all, or none.

    :raises ClosedError: one of them is closing
    """
    if len(leases) > 1:
        for leased in leases:
            leased.require_open()
    for leased in leases:
        leased.lease()


def _again(
    plan: Callable[[LocalT, RemoteT, Route, int | None, int], Plan], local: LocalT, remote: RemoteT, counter: int | None
) -> Planner:
    # Not within submit(): what a function's lambda holds costs it something even where it makes none.
    return lambda routes, cursor: plan(local, remote, routes[0], counter, cursor)


class Submission:
    """Everything of one engine that is under way to its peers."""

    def __init__(self, loop: EventLoop, connections: ConnectionManager, tasks: TaskGroup) -> None:
        """Begin with nothing under way."""
        self._loop = loop
        self._connections = connections
        self._tasks = tasks
        self.ids = cast("Iterator[TransferId]", itertools.count(1))
        self._blocks = itertools.count(1 << 62, MAX_PREPARED)  # ids, so many at once
        self._regions = itertools.count(1 << 31)  # imports; an engine's own regions are numbered from 1
        self._requests = itertools.count(1)
        self._cursor = 0
        self._bound: dict[_RegionKey, ResolvedRoute] = {}
        self.routes_dropped = 0
        """Rises when a route that was known is no more."""
        self._deferred: set[Transfer] = set()
        self.parts: dict[int, Part] = {}
        self.partial: Mapping[Leased, frozenset[str]] = {}
        """Of our own regions those that not every driver reaches, and which do."""
        self.wake_stall_watch: Callable[[], None] = lambda: None

    # ---------------------------------------------------------------------------------------------------- submitting

    def submit(
        self,
        operation: str,
        plan: Callable[[LocalT, RemoteT, Route, int | None, int], Plan],
        local: LocalT,
        remote: RemoteT,
        counter: int | None = None,
    ) -> Transfer:
        """Start an operation between memory of ours and of one peer's, or queue it until it can start.

        :param plan: makes the batch for one route; called once more if the route is not known yet
        :param local: part of a region, which must stay as it is meanwhile
        :param counter: the peer's counter that the batch raises
        :raises UsageError: from ``plan``: the arguments do not fit; nothing was started
        :raises ClosedError: our region is closing
        """
        ours, theirs = local.region, remote.region
        bound = self._bound.get(theirs.key)
        self._cursor += 1
        batch = plan(local, remote, _PROBE if bound is None else bound.route, counter, self._cursor)
        ours.lease()
        transfer = Transfer(self._loop, operation, theirs.peer.label, batch.nbytes, batch.chunks, (ours,))
        if not batch.chunks or (not batch.nbytes and counter is None):
            transfer.finish_part()  # nothing moves and nobody counts
            return transfer
        promises = () if counter is None else ((counter, batch.chunks),)
        if bound is not None:
            self._post(transfer, bound, batch, promises)
        else:
            self._defer(transfer, theirs.peer, (theirs,), _again(plan, local, remote, counter), promises)
        return transfer

    def notify(self, peer: PeerInfo, counter: int) -> Transfer:
        """Start to raise a peer's counter by one, without a payload."""
        bound = self._bound.get((peer.incarnation, 0, 0))
        self._cursor += 1
        batch = plan_notify(_PROBE if bound is None else bound.route, counter, self._cursor)
        transfer = Transfer(self._loop, "notify", peer.label, 0, 1)
        promises = ((counter, 1),)
        if bound is not None:
            self._post(transfer, bound, batch, promises)
        else:
            self._defer(
                transfer, peer, (None,), lambda routes, cursor: plan_notify(routes[0], counter, cursor), promises
            )
        return transfer

    def submit_each(
        self, operation: str, jobs: Sequence[PeerBatch], *, leases: tuple[Leased, ...], nbytes: int, count: int
    ) -> Transfer:
        """Start one operation with several peers. Each is a part of its own: one lost peer fails nobody else's.

        :raises UsageError: from a plan; nothing was started
        :raises ClosedError: something leased is closing
        """
        self._cursor += 1
        for job in jobs:
            job.plan([_PROBE] * len(job.remotes), 0)
        label = ", ".join(job.peer.label for job in jobs[:4]) + f" and {len(jobs) - 4} more" * (len(jobs) > 4)  # noqa: PLR2004
        _lease(leases)
        transfer = Transfer(self._loop, operation, label, nbytes, count, leases)
        for job in jobs:
            transfer.add_part()
            known = [self._bound.get(remote.key) for remote in job.remotes]
            bounds = [bound for bound in known if bound is not None]
            if len(bounds) == len(known):
                batch = job.plan([bound.route for bound in bounds], self._cursor)
                self._post(transfer, bounds[0], batch, job.promises)
            else:
                self._defer(transfer, job.peer, job.remotes, job.plan, job.promises)
        transfer.finish_part()
        return transfer

    def bound(self, remote: RemoteRegion) -> ResolvedRoute | None:
        """Return how a peer's region is reached, if that is known."""
        return self._bound.get(remote.key)

    def submit_prepared(  # noqa: PLR0913, PLR0917 - one operation
        self,
        driver: NativeDriver,
        label: str,
        bounds: Sequence[ResolvedRoute],
        plan: Plan,
        promises: Sequence[AnnouncedCounts],
        source: Leased,
    ) -> Transfer:
        """Post one run to each of several peers, each a part of its own, by one call of their driver.

        :param bounds: at most ``MAX_PREPARED``
        :param plan: one run per bound, of one piece
        :param promises: per bound; they were told when the routes were resolved
        :raises ClosedError: the source is closing
        """
        source.lease()
        transfer = Transfer(self._loop, "scatter", label, plan.nbytes, plan.chunks, (source,))
        transfer.path = bounds[0].path
        first = TransferId(next(self._blocks))
        try:
            if self.partial:
                self._require_reach((source,), bounds[0].one.name)
            left = driver.post_each(first, plan.runs, plan.pieces)
        except Exception as raised:  # noqa: BLE001 - whatever a driver raises, the transfer ends with it
            error = as_typed_error(raised, "scatter", label)
            for bound, promised in zip(bounds, promises, strict=True):
                self._abort(bound.peer, promised, "scatter", str(error))
            transfer.finish_part(error_factory(error))
            return transfer
        if left:
            now = self._loop.time()
            for index in left:
                self.parts[first + index] = Part(transfer, bounds[index].peer, promises[index], now)
                transfer.add_part()
            self.wake_stall_watch()
        transfer.finish_part()
        return transfer

    def _defer(
        self,
        transfer: Transfer,
        peer: PeerInfo,
        remotes: Sequence[RemoteRegion | None],
        plan: Planner,
        promises: AnnouncedCounts,
    ) -> None:
        """Post as soon as the connection and the regions are there."""

        async def later() -> None:
            try:
                bounds = [await self.bind(peer, remote, promises) for remote in remotes]
                batch = plan([bound.route for bound in bounds], self._cursor)
            except ClosedError:
                self._give_up(transfer, peer.label)
            except AioTransferError as error:
                connection = self._connections.peers.get(peer.incarnation)
                if connection is not None:
                    self._abort(connection, promises, transfer.operation, str(error))
                transfer.finish_part(error_factory(error))
            except BaseException:
                self._give_up(transfer, peer.label)
                raise
            else:
                self._post(transfer, bounds[0], batch, promises)
            finally:
                self._deferred.discard(transfer)

        self._deferred.add(transfer)
        self._tasks.start_soon(later, name=f"aio_transfer.{transfer.operation}({peer.label})")

    @staticmethod
    def _give_up(transfer: Transfer, peer: str) -> None:
        reason = "the engine was closed before it was posted"
        transfer.finish_part(
            lambda: TransferAbortedError(transfer.operation, reason, peer=peer, nbytes=transfer.nbytes)
        )

    def _post(self, transfer: Transfer, bound: ResolvedRoute, batch: Plan, promises: AnnouncedCounts) -> None:
        peer = bound.peer
        for counter, _ in promises:  # mostly known: a call less per write
            if counter not in peer.announced.by_us:
                self.promise(peer, promises)  # all of them
                break
        number = next(self.ids)
        transfer.path = bound.path
        try:
            if self.partial:
                self._require_reach(transfer.leases, bound.one.name)
            done = bound.one.driver.post(number, batch.runs, batch.pieces)
        except Exception as raised:  # noqa: BLE001 - whatever a driver raises, the transfer ends with it
            error = as_typed_error(raised, transfer.operation, peer.label)
            self._abort(peer, promises, transfer.operation, str(error))
            transfer.finish_part(error_factory(error))
            return
        if done:
            transfer.finish_part()
            return
        self.parts[number] = Part(transfer, peer, promises, self._loop.time())
        self.wake_stall_watch()

    def _require_reach(self, leases: tuple[Leased, ...], backend: str) -> None:
        for leased in leases:
            reaching = self.partial.get(leased)
            if reaching is not None and backend not in reaching:
                raise UnsupportedError(f"moving {leased.name} over {backend}", needs=" or ".join(reaching), has=backend)

    def on_transfer_event(self, number: int, status: int, code: int, payload: bytes) -> bool:
        """Handle a driver's TRANSFER event; ``False`` when it is no batch of ours."""
        part = self.parts.pop(number, None)
        if part is None:
            return False
        if status == 0:
            part.transfer.finish_part()
            return True
        transfer, peer = part.transfer, part.peer
        text = payload.decode(errors="replace")
        self._abort(peer, part.promises, transfer.operation, text)
        if peer.is_over:
            text = peer.reason
        transfer.finish_part(
            transfer_error(status, code, text, operation=transfer.operation, peer=peer.label, nbytes=transfer.nbytes)
        )
        return True

    def promise(self, peer: Connection, promises: AnnouncedCounts) -> None:
        """Let the receiver know whom it depends on, before anything is written."""
        for counter, _ in promises:
            if counter not in peer.announced.by_us:
                peer.announced.by_us.add(counter)
                self._connections.send_frame(peer, CountAnnouncement([counter]))

    def _abort(self, peer: Connection, promises: AnnouncedCounts, operation: str, reason: str) -> None:
        """Poison the counts that were promised: the receiver must not wait for what cannot come."""
        for counter, count in promises:
            if peer.is_up:
                abort = Abort(counter=counter, operation=operation, reason=clip(reason), counts=count)
                self._connections.send_frame(peer, abort)

    # ------------------------------------------------------------------------------------------------------- routes

    async def bind(
        self, address: PeerInfo, remote: RemoteRegion | None, promises: AnnouncedCounts = ()
    ) -> ResolvedRoute:
        """Connect to a peer and make its region known to the driver.

        :param promises: told as soon as there is a connection: it may end while the region is asked for
        :raises AioTransferError: why that cannot be
        """
        key = remote.key if remote is not None else (address.incarnation, 0, 0)
        while True:
            peer = self._connections.ensure(address)
            await peer.wait_ready()
            self.promise(peer, promises)
            bound = self._bound.get(key)  # after the wait: another task may have been first
            if bound is not None:
                return bound
            under_way = peer.imports.pending.get(key)
            if under_way is not None:
                await under_way.wait()
                if not peer.is_up:
                    raise peer.lost_error()
                continue
            under_way = peer.imports.pending[key] = anyio.Event()
            try:
                return await self._import(peer, remote, key)
            finally:
                del peer.imports.pending[key]
                under_way.set()

    async def _import(self, peer: Connection, remote: RemoteRegion | None, key: _RegionKey) -> ResolvedRoute:
        one = peer.driver
        if one is None:
            raise peer.lost_error()
        number = ANY_REGION
        if remote is not None:
            number = RegionNumber(next(self._regions))
            await self._ask(peer, one, remote, number)
            if key not in peer.imports.regions:  # taken back while we were told that we may have it
                raise StaleRegionError(f"{remote.descriptor.region:#x}", peer.label)
        has = one.capabilities
        route = Route(
            peer=peer.number, remote_region=number, rails=len(has.rails), max_piece_nbytes=has.max_piece_nbytes
        )
        bound = self._bound[key] = ResolvedRoute(peer, one, route, one.path)
        return bound

    async def _ask(self, peer: Connection, one: OpenDriver, remote: RemoteRegion, number: RegionNumber) -> None:
        """Ask the owner for the region, and register what comes (with its fds, while they are open)."""
        reaching = remote.descriptor.keys
        if one.name not in reaching:
            needs = f"{' or '.join(reaching)}, which reaches this memory of its owner's"
            raise UnsupportedError(f"moving {remote.name} over {one.name}", needs=needs, has=one.name)
        answered = anyio.Event()
        failure: list[AioTransferError] = []

        def take(reply: GrantReply, fds: tuple[int, ...]) -> None:
            answered.set()
            if not reply.ok:
                failure.append(StaleRegionError(f"{remote.descriptor.region:#x}", peer.label, reply.reason))
                return
            known = reaching[one.name]
            if remote.descriptor.access & ~reply.access or remote.nbytes != reply.nbytes or known != (reply.keys,):
                failure.append(UsageError(f"the descriptor of {remote.name} claims more than its owner grants"))
                return
            memory = RemoteMemory(peer=peer.number, nbytes=remote.nbytes, keys=reply.keys, fds=fds)
            try:
                one.driver.register(number, memory)
            except Exception as error:  # noqa: BLE001 - as above
                failure.append(as_typed_error(error, "register", peer.label))
            else:
                peer.imports.regions[remote.key] = number  # at once: the next frame may take it back

        request = next(self._requests) & 0xFFFF_FFFF
        peer.grants.requests[request] = take
        descriptor = remote.descriptor
        self._connections.send_frame(
            peer,
            GrantRequest(request=request, region=descriptor.region, generation=descriptor.generation, backend=one.name),
        )
        try:
            await answered.wait()
        finally:
            peer.grants.requests.pop(request, None)
        if not peer.is_up:
            raise peer.lost_error()
        if failure:
            raise failure[0]

    def forget(self, peer: Connection, region: int) -> None:
        """Drop a region that its owner has taken back."""
        self.routes_dropped += 1
        for key in [key for key in peer.imports.regions if key[1] == region]:
            self._bound.pop(key, None)
            number = peer.imports.regions.pop(key)
            if peer.driver is not None:
                peer.driver.driver.deregister(number)

    def drop(self, peer: Connection) -> None:
        """Forget every route of a connection that is over, and let those who wait for one know."""
        self.routes_dropped += 1
        for key in [key for key, bound in self._bound.items() if bound.peer is peer]:
            del self._bound[key]
        for number in peer.imports.regions.values():
            if peer.driver is not None:
                with contextlib.suppress(Exception):  # it has failed as a whole; the others still have to know
                    peer.driver.driver.deregister(number)
        peer.imports.regions.clear()
        for answer in tuple(peer.grants.requests.values()):
            answer(GrantReply(request=0, ok=False, reason=peer.reason), ())
        peer.grants.requests.clear()

    # ------------------------------------------------------------------------------------------------------- closing

    @property
    def under_way(self) -> Iterator[Transfer]:
        """Every transfer that has not stopped."""
        yield from {part.transfer for part in self.parts.values()} | self._deferred

    async def settle(self, grace_s: float) -> None:
        """Wait until nothing is under way, at most ``grace_s``."""
        with anyio.move_on_after(grace_s):
            for transfer in tuple(self.under_way):
                try:
                    await transfer.wait()
                except AioTransferError:
                    continue  # whoever awaits it is told; here only that it has stopped matters

    def abandon(self, reason: str) -> None:
        """End every part whose driver is closed: nothing moves any more."""
        parts, self.parts = self.parts, {}
        for part in parts.values():
            transfer = part.transfer
            transfer.finish_part(
                lambda transfer=transfer: TransferAbortedError(  # type: ignore[misc]
                    transfer.operation, reason, peer=transfer.peer, nbytes=transfer.nbytes
                )
            )
