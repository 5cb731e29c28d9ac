"""Peer groups: the same peers again and again, with scatters and a true barrier."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from aio_transfer.errors import BusyError, ClosedError, UsageError
from aio_transfer.groups.membership import MembershipTable
from aio_transfer.groups.prepared_scatter import PreparedScatter
from aio_transfer.transfers.scatter import submit_scatter
from aio_transfer.transfers.validation import counter_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.context import EngineContext
    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.regions.descriptor import CounterRef
    from aio_transfer.regions.region import Region, RemoteRegion, RemoteSlice, Slice
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("PeerGroup",)


class PeerGroup:
    """Some peers and this engine, in a fixed membership.

    Every member makes the group with the same peers (each names the others) and the same ``name``.

    :ivar peers: the other members
    """

    def __init__(self, context: EngineContext, board: MembershipTable, peers: Sequence[PeerInfo], name: str) -> None:
        """Claim the membership; use ``engine.group``.

        :raises UsageError: a peer is named twice, or is this engine
        :raises BusyError: this group is open here already
        """
        self.peers = tuple(peers)
        self.name = name
        incarnations = {peer.incarnation for peer in self.peers}
        if len(incarnations) != len(self.peers) or context.address.incarnation in incarnations:
            raise UsageError("a group names each other member once, and not this engine")
        self._context = context
        self._board = board
        members = sorted((*incarnations, context.address.incarnation))
        self.key = hashlib.sha256(b"\0".join((b"aio-transfer group", name.encode(), *members))).digest()
        # Two counters, for even and odd epochs. A member can be one epoch ahead of the slowest, and not two: it leaves
        # epoch k + 1 only when everybody has entered it. So a count of epoch k is never taken for one of k + 1.
        board.open(self)
        self._counters: tuple[ImmCounter, ImmCounter] = (
            context.counters.create(guarded=True),
            context.counters.create(guarded=True),
        )
        self._epoch = 0
        self.entered = False
        """Whether members are told that we are in the present epoch's barrier."""
        self._joined = False
        self.told: set[bytes] = set()
        """Members that may know our counters, and take us for one of theirs."""
        self._waiting = False
        self._closed = False
        self._notes: list[tuple[int, Transfer]] = []

    @property
    def epoch(self) -> int:
        """How many barriers have been passed."""
        return self._epoch

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
        """Start what :meth:`scatter` does, and return at once."""
        self._check()
        self._require_members([target.region.peer for target in targets])
        return submit_scatter(self._context.submission, self._context.operands, sources, targets, counters)

    def _require_members(self, peers: Sequence[PeerInfo]) -> None:
        members = {peer.incarnation for peer in self.peers}
        for peer in peers:
            if peer.incarnation not in members:
                raise UsageError(f"{peer.label} is no member of the group")

    async def prepare_scatter(
        self,
        source: Region,
        targets: Sequence[RemoteRegion],
        *,
        counters: Sequence[CounterRef | None] | None = None,
    ) -> PreparedScatter:
        """Connect to those who are scattered to again and again; each scatter then names offsets and lengths alone.

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
        numbers = [
            counter_of(target, None if counters is None else counters[index]) for index, target in enumerate(targets)
        ]
        prepared = PreparedScatter(self._context, source, targets, numbers)
        await prepared.connect()
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
        self._waiting = True
        try:
            if not self._joined:
                await self._board.join(self)
                self._joined = True
            self._board.require_members(self)
            parity = self._epoch % 2
            if not self.entered:
                self.entered = True
                self._notes = [note for note in self._notes if not _kept(note[1])]
                for peer in self.peers:
                    note = self._context.submission.notify(peer, self._board.counters_of(self, peer)[parity])
                    self._notes.append((self._epoch, note))
            await self._counters[parity].wait(len(self.peers))
            self.entered = False
            self._epoch += 1
        finally:
            self._waiting = False

    def close(self, *, engine_closes: bool = False) -> None:
        """Leave the group; members still in a barrier get :class:`TransferAbortedError`. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._board.leave(self, closing=engine_closes)
        for counter in self._counters:
            counter.close()

    def kept(self, *, closing: bool) -> int:
        """Return how many barriers were passed of which every other member is told.

        :param closing: the engine closes, so what is under way still will not arrive
        """
        broken = (epoch for epoch, note in self._notes if (closing if not note.done else note.exception()))
        return min([self._epoch, *broken])

    @property
    def counter_ids(self) -> tuple[int, int]:
        """What the other members raise."""
        return self._counters[0].id, self._counters[1].id

    def _check(self) -> None:
        self._context.check()
        if self._closed:
            raise ClosedError(f"group {self.name!r}")


def _kept(note: Transfer) -> bool:
    return note.done and note.exception() is None
