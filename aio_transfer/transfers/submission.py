"""Submission: posts planned batches to drivers, and brings their end back to the transfers.

A submit is never refused for being large or early: while the connection or the peer's region is not there yet, a
background task waits for it and posts then.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import anyio

from aio_transfer.driver.error_mapping import FailedOperation, as_typed_error, error_factory, transfer_error
from aio_transfer.driver.records import ANY_REGION, PeerNumber, TransferId
from aio_transfer.errors import AioTransferError, ClosedError, TransferAbortedError, UnsupportedError
from aio_transfer.transfers.planner import plan_notify
from aio_transfer.transfers.striping import Route
from aio_transfer.transfers.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anyio.abc import TaskGroup

    from aio_transfer.driver.protocol import PreparedDriver
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.regions.lease import LeaseCounter
    from aio_transfer.regions.region import Pages, Region, RemotePages, RemoteRegion, RemoteSlice, Slice
    from aio_transfer.runtime.event_loop import EventLoop
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.announcements import AnnouncedCounts, CountAnnouncements
    from aio_transfer.transfers.routes import ResolvedRoute, RouteTable
    from aio_transfer.transfers.striping import Batch

    Planner = Callable[[Sequence[Route], int], Batch]

__all__ = ("MAX_PREPARED", "InFlight", "PeerBatch", "PreparedPost", "Submission")

_PROBE: Final = Route(peer=PeerNumber(0), remote_region=ANY_REGION, rails=1, max_piece_nbytes=2**62)
"""A plan against it only checks the arguments."""
MAX_PREPARED: Final = 1 << 16
"""Targets of one prepared scatter: each has a transfer id of its own, and they are taken in one block."""
LocalT = TypeVar("LocalT", "Slice", "Pages")
RemoteT = TypeVar("RemoteT", "RemoteSlice", "RemotePages")


class PeerBatch(NamedTuple):
    """The part of one operation that goes to one of several peers.

    :ivar remotes: the regions whose routes ``plan`` is called with, in this order
    """

    peer: PeerInfo
    remotes: Sequence[RemoteRegion]
    plan: Planner
    announced: AnnouncedCounts


class PreparedPost(NamedTuple):
    """One run to each of several peers, posted by one call of their common driver.

    :ivar routes: at most ``MAX_PREPARED``
    :ivar announced: per route; the counters were announced when the routes were resolved
    """

    driver: PreparedDriver
    label: str
    routes: Sequence[ResolvedRoute]
    announced: Sequence[AnnouncedCounts]
    source: Region


class InFlight(NamedTuple):
    """A batch that a driver has accepted and not reported yet."""

    transfer: Transfer
    connection: Connection
    announced: AnnouncedCounts
    since: float


def _acquire(leases: tuple[LeaseCounter, ...]) -> None:
    """Acquire all leases, or none.

    :raises ClosedError: one of the regions is closing
    """
    if len(leases) > 1:
        for lease in leases:
            lease.require_open()
    for lease in leases:
        lease.acquire()


def _replan(
    plan: Callable[[LocalT, RemoteT, Route, int | None, int], Batch],
    local: LocalT,
    remote: RemoteT,
    counter: int | None,
) -> Planner:
    # Not within submit(): a function that contains a lambda pays for the lambda's cells on every call.
    return lambda routes, cursor: plan(local, remote, routes[0], counter, cursor)


class Submission:
    """Batches of one engine on their way to its peers.

    :ivar in_flight: accepted by a driver and not reported yet, by transfer id
    """

    def __init__(  # noqa: PLR0913 - the parts of an engine it works with, all keywords
        self,
        *,
        loop: EventLoop,
        connections: ConnectionManager,
        routes: RouteTable,
        announcements: CountAnnouncements,
        tasks: TaskGroup,
        transfer_ids: Iterator[TransferId],
        partial_reach: Mapping[LeaseCounter, frozenset[str]],
        on_post: Callable[[], None],
        on_other_transfer: Callable[[int, str], None],
    ) -> None:
        """Begin with nothing in flight.

        :param transfer_ids: shared with messages
        :param partial_reach: of regions that not every driver reaches, by lease counter: the drivers that do
        :param on_post: called after a batch was posted that is not over yet
        :param on_other_transfer: called for TRANSFER events of ids that are no batch (messages)
        """
        self._loop = loop
        self._connections = connections
        self._routes = routes
        self._known_routes = routes.known
        self._announcements = announcements
        self._tasks = tasks
        self._ids = transfer_ids
        self._id_blocks = itertools.count(1 << 62, MAX_PREPARED)
        self._partial_reach = partial_reach
        self._on_post = on_post
        self._on_other_transfer = on_other_transfer
        self._cursor = 0
        self._deferred: set[Transfer] = set()
        self.in_flight: dict[int, InFlight] = {}

    # ---------------------------------------------------------------------------------------------------- submitting

    def submit(
        self,
        operation: str,
        plan: Callable[[LocalT, RemoteT, Route, int | None, int], Batch],
        local: LocalT,
        remote: RemoteT,
        counter: int | None = None,
    ) -> Transfer:
        """Start an operation between local memory and memory of one peer, or queue it until it can start.

        :param plan: makes the batch for one route; called once more if the route is not known yet
        :param local: part of a region, which is leased meanwhile
        :param counter: the peer's counter that the batch raises
        :raises UsageError: from ``plan``: the arguments do not fit; nothing was started
        :raises ClosedError: the local region is closing
        """
        lease, theirs = local.region._lease, remote.region
        resolved = self._known_routes.get(theirs.key)
        self._cursor += 1
        batch = plan(local, remote, _PROBE if resolved is None else resolved.route, counter, self._cursor)
        lease.acquire()
        transfer = Transfer(self._loop, operation, theirs.peer.label, batch.nbytes, batch.chunks, (lease,))
        if not batch.chunks or (not batch.nbytes and counter is None):
            transfer._finish_part()  # nothing moves and nothing is counted
            return transfer
        announced = () if counter is None else ((counter, batch.chunks),)
        if resolved is not None:
            self._post(transfer, resolved, batch, announced)
        else:
            self._defer(transfer, theirs.peer, (theirs,), _replan(plan, local, remote, counter), announced)
        return transfer

    def notify(self, peer: PeerInfo, counter: int) -> Transfer:
        """Start to raise a peer's counter by one, without a payload."""
        resolved = self._known_routes.get((peer.incarnation, 0, 0))
        self._cursor += 1
        batch = plan_notify(_PROBE if resolved is None else resolved.route, counter, self._cursor)
        transfer = Transfer(self._loop, "notify", peer.label, 0, 1)
        announced = ((counter, 1),)
        if resolved is not None:
            self._post(transfer, resolved, batch, announced)
        else:
            self._defer(
                transfer, peer, (None,), lambda routes, cursor: plan_notify(routes[0], counter, cursor), announced
            )
        return transfer

    def submit_each(
        self, operation: str, batches: Sequence[PeerBatch], *, leases: tuple[LeaseCounter, ...], nbytes: int, count: int
    ) -> Transfer:
        """Start one operation with several peers. Each is a part of its own: one lost peer fails no other.

        :raises UsageError: from a plan; nothing was started
        :raises ClosedError: a leased region is closing
        """
        self._cursor += 1
        for batch in batches:
            batch.plan([_PROBE] * len(batch.remotes), 0)
        _acquire(leases)
        transfer = Transfer(self._loop, operation, _labels(batches), nbytes, count, leases)
        for batch in batches:
            transfer._add_part()
            known = [self._known_routes.get(remote.key) for remote in batch.remotes]
            resolved = [route for route in known if route is not None]
            if len(resolved) == len(known):
                planned = batch.plan([route.route for route in resolved], self._cursor)
                self._post(transfer, resolved[0], planned, batch.announced)
            else:
                self._defer(transfer, batch.peer, batch.remotes, batch.plan, batch.announced)
        transfer._finish_part()
        return transfer

    def submit_prepared(self, prepared: PreparedPost, batch: Batch) -> Transfer:
        """Post one run to each of several peers, each a part of its own, by one call of their driver.

        :param batch: one run per route, of one piece
        :raises ClosedError: the source is closing
        """
        driver, label, routes, announced, source = prepared
        lease = source._lease
        lease.acquire()
        transfer = Transfer(self._loop, "scatter", label, batch.nbytes, batch.chunks, (lease,))
        transfer.path = routes[0].path
        first = TransferId(next(self._id_blocks))
        try:
            if self._partial_reach:
                self._require_reach((lease,), routes[0].driver.name)
            left = driver.post_each(first, batch.runs, batch.pieces)
        except Exception as raised:  # noqa: BLE001 - whatever a driver raises, the transfer ends with it
            error = as_typed_error(raised, "scatter", label)
            for route, counts in zip(routes, announced, strict=True):
                self._announcements.abort(route.connection, counts, "scatter", str(error))
            transfer._finish_part(error_factory(error))
            return transfer
        if left:
            now = self._loop.time()
            for index in left:
                self.in_flight[first + index] = InFlight(transfer, routes[index].connection, announced[index], now)
                transfer._add_part()
            self._on_post()
        transfer._finish_part()
        return transfer

    def _defer(
        self,
        transfer: Transfer,
        peer: PeerInfo,
        remotes: Sequence[RemoteRegion | None],
        plan: Planner,
        announced: AnnouncedCounts,
    ) -> None:
        """Post as soon as the routes are resolved."""

        async def resolve_and_post() -> None:
            try:
                resolved = [await self._routes.resolve(peer, remote, announced) for remote in remotes]
                batch = plan([route.route for route in resolved], self._cursor)
            except ClosedError:
                self._give_up(transfer, peer.label)
            except AioTransferError as error:
                connection = self._connections.peers.get(peer.incarnation)
                if connection is not None:
                    self._announcements.abort(connection, announced, transfer.operation, str(error))
                transfer._finish_part(error_factory(error))
            except BaseException:
                self._give_up(transfer, peer.label)
                raise
            else:
                self._post(transfer, resolved[0], batch, announced)
            finally:
                self._deferred.discard(transfer)

        self._deferred.add(transfer)
        self._tasks.start_soon(resolve_and_post, name=f"aio_transfer.{transfer.operation}({peer.label})")

    @staticmethod
    def _give_up(transfer: Transfer, peer: str) -> None:
        reason = "the engine was closed before it was posted"
        transfer._finish_part(
            lambda: TransferAbortedError(transfer.operation, reason, peer=peer, nbytes=transfer.nbytes)
        )

    def _post(self, transfer: Transfer, resolved: ResolvedRoute, batch: Batch, announced: AnnouncedCounts) -> None:
        connection = resolved.connection
        for counter, _ in announced:  # mostly announced already: this saves a call per write
            if counter not in connection.promised:
                self._announcements.announce(connection, announced)
                break
        number = next(self._ids)
        transfer.path = resolved.path
        try:
            if self._partial_reach:
                self._require_reach(transfer._leases, resolved.driver.name)
            done = resolved.driver.driver.post(number, batch.runs, batch.pieces)
        except Exception as raised:  # noqa: BLE001 - whatever a driver raises, the transfer ends with it
            error = as_typed_error(raised, transfer.operation, connection.label)
            self._announcements.abort(connection, announced, transfer.operation, str(error))
            transfer._finish_part(error_factory(error))
            return
        if done:
            transfer._finish_part()
            return
        self.in_flight[number] = InFlight(transfer, connection, announced, self._loop.time())
        self._on_post()

    def _require_reach(self, leases: tuple[LeaseCounter, ...], backend: str) -> None:
        for lease in leases:
            reaching = self._partial_reach.get(lease)
            if reaching is not None and backend not in reaching:
                raise UnsupportedError(f"moving {lease.name} over {backend}", needs=" or ".join(reaching), has=backend)

    # ----------------------------------------------------------------------------------------------------- completing

    def on_transfer_event(self, number: int, status: int, code: int, payload: bytes) -> None:
        """Handle a driver's TRANSFER event."""
        part = self.in_flight.pop(number, None)
        if part is None:
            self._on_other_transfer(number, payload.decode(errors="replace") or "the transport failed")
            return
        if status == 0:
            part.transfer._finish_part()
            return
        transfer, connection = part.transfer, part.connection
        text = payload.decode(errors="replace")
        self._announcements.abort(connection, part.announced, transfer.operation, text)
        if connection.is_over:
            text = connection.reason
        failed = FailedOperation(transfer.operation, connection.label, transfer.nbytes)
        transfer._finish_part(transfer_error(status, code, text, failed))

    def pending(self) -> set[Transfer]:
        """Return every transfer that has not stopped."""
        return {part.transfer for part in self.in_flight.values()} | self._deferred

    async def drain(self, grace_s: float) -> None:
        """Wait until nothing is in flight, at most ``grace_s`` seconds."""
        with anyio.move_on_after(grace_s):
            for transfer in self.pending():
                try:
                    await transfer.wait()
                except AioTransferError:
                    continue  # its awaiters get the error; here it only matters that it has stopped

    def abort_all(self, reason: str) -> None:
        """End every transfer whose driver is closed: nothing moves any more."""
        parts, self.in_flight = self.in_flight, {}
        for part in parts.values():
            part.transfer._finish_part(_aborted(part.transfer, reason))


def _aborted(transfer: Transfer, reason: str) -> Callable[[], AioTransferError]:
    return lambda: TransferAbortedError(transfer.operation, reason, peer=transfer.peer, nbytes=transfer.nbytes)


def _labels(batches: Sequence[PeerBatch], shown: int = 4) -> str:
    """Name the first peers of an operation, and how many more there are."""
    more = f" and {len(batches) - shown} more" if len(batches) > shown else ""
    return ", ".join(batch.peer.label for batch in batches[:shown]) + more
