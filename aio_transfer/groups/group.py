"""Peer group: a fixed set of engines that scatter to each other and meet in barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from aio_transfer.errors import BusyError, ClosedError, UsageError
from aio_transfer.groups.prepared_scatter import PreparedScatter
from aio_transfer.transfers.scatter import submit_scatter
from aio_transfer.transfers.validation import counter_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from aio_transfer.context import EngineContext
    from aio_transfer.groups.membership import MembershipTable
    from aio_transfer.groups.membership_state import Membership
    from aio_transfer.regions.descriptor import CounterRef
    from aio_transfer.regions.region import Region, RemoteRegion, RemoteSlice, Slice
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("PeerGroup", "open_group")


async def open_group(context: EngineContext, table: MembershipTable, peers: Sequence[PeerInfo], name: str) -> PeerGroup:
    """Connect to some peers and make a group of them and this engine.

    :raises UsageError: a peer is named twice, or is this engine
    :raises BusyError: this group is open here already
    :raises PeerLostError: a member cannot be reached
    """
    return PeerGroup(context, table, await table.open(peers, name), peers, name)


class PeerGroup:
    """Some peers and this engine, in a fixed membership; ``engine.group`` makes it.

    Every member makes the group with the same peers (each names the others) and the same ``name``. Leaving a ``with``
    block closes it.

    :ivar peers: the other members
    :ivar name: distinguishes groups of the same members
    """

    __slots__ = ("_context", "_membership", "_table", "_waiting", "name", "peers")

    def __init__(
        self,
        context: EngineContext,
        table: MembershipTable,
        membership: Membership,
        peers: Sequence[PeerInfo],
        name: str,
    ) -> None:
        """Take over an open membership; use ``engine.group``."""
        self.peers = tuple(peers)
        self.name = name
        self._context = context
        self._table = table
        self._membership = membership
        self._waiting = False

    @property
    def epoch(self) -> int:
        """Number of barriers passed."""
        return self._membership.barrier.epoch

    async def scatter(
        self,
        sources: Sequence[Slice],
        targets: Sequence[RemoteSlice],
        *,
        counters: Sequence[CounterRef | None] | None = None,
    ) -> None:
        """Write slice ``i`` to target ``i``; each target counts once, also without bytes.

        :param counters: by default, per target, the counter in its region's descriptor
        :raises UsageError: lengths differ, or a target is not a member's
        :raises PeerLostError: a member died; what went to the others is unharmed
        :cancellation: the await ends at once; the writes go on
        """
        await self.submit_scatter(sources, targets, counters=counters)

    def submit_scatter(
        self,
        sources: Sequence[Slice],
        targets: Sequence[RemoteSlice],
        *,
        counters: Sequence[CounterRef | None] | None = None,
    ) -> Transfer:
        """Start the writes of :meth:`scatter`, and return at once."""
        self._check()
        self._require_members([target.region.peer for target in targets])
        return submit_scatter(self._context.submission, self._context.operands, sources, targets, counters)

    async def prepare_scatter(
        self,
        source: Region,
        targets: Sequence[RemoteRegion],
        *,
        counters: Sequence[CounterRef | None] | None = None,
    ) -> PreparedScatter:
        """Connect to the targets of many scatters; each scatter then names offsets and lengths alone.

        :param source: our region
        :param targets: regions of members that grant REMOTE_WRITE, at most one of each
        :param counters: by default, per target, the counter in its region's descriptor
        :raises UsageError: a target is not a member's or grants no write, or the numbers differ
        :raises PeerLostError: a member cannot be reached
        """
        self._check()
        self._require_members([target.peer for target in targets])
        if counters is not None and len(counters) != len(targets):
            raise UsageError(f"{len(counters)} counters for {len(targets)} targets")
        self._context.operands.require_own(source)
        numbers = [
            counter_of(target, None if counters is None else counters[index]) for index, target in enumerate(targets)
        ]
        prepared = PreparedScatter(self._context, source, targets, numbers)
        await prepared._connect()
        return prepared

    async def barrier(self) -> None:
        """Wait until every member has entered this epoch's barrier.

        Counts of payloads are independent of it: a barrier orders programs, not memory.

        :raises PeerLostError: a member died or closed; the group is of no further use
        :raises TransferAbortedError: a member left the group
        :raises BusyError: another task is in the barrier
        :cancellation: this member stays entered; the next call goes on waiting for the same epoch
        """
        self._check()
        if self._waiting:
            raise BusyError(f"the barrier of group {self.name!r}", "waiting in")
        membership = self._membership
        barrier = membership.barrier
        self._waiting = True
        try:
            if not membership.is_joined:
                await self._table.join(membership, self.peers)
            self._table.require_members(membership)
            counter = membership.counters[barrier.parity]
            if barrier.enter():
                for peer in self.peers:
                    number = membership.counter_of(peer.incarnation)
                    barrier.add_notification(self._context.submission.notify(peer, number))
            await counter.wait(len(self.peers))
            barrier.complete()
        finally:
            self._waiting = False

    def close(self) -> None:
        """Leave the group; members still in a barrier get :class:`TransferAbortedError`. Idempotent."""
        self._table.leave(self._membership)

    def __enter__(self) -> Self:
        """Return the group, to be closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the group; see :meth:`close`."""
        self.close()

    def _require_members(self, peers: Sequence[PeerInfo]) -> None:
        members = self._membership.members
        for peer in peers:
            if peer.incarnation not in members:
                raise UsageError(f"{peer.label} is no member of the group")

    def _check(self) -> None:
        self._context.check()
        if self._membership.is_closed:
            raise ClosedError(f"group {self.name!r}")
