"""Peer groups: the same peers again and again, with scatters and a true barrier."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import anyio

from .arguments import counter_of
from .control import GroupJoin, GroupLeave
from .errors import BusyError, ClosedError, PeerLostError, TransferAbortedError, UsageError
from .together import for_each

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .counters import ImmCounter
    from .descriptors import CounterRef, PeerAddress
    from .engine import TransferEngine
    from .errors import AioTransferError
    from .peers import Connection
    from .regions import Region, RemoteRegion, RemoteSlice, Slice
    from .scatter import PreparedScatter
    from .transfers import Transfer

__all__ = ("GroupBoard", "PeerGroup")

_MAX_GROUPS: Final = 4096


class PeerGroup:
    """Some peers and this engine, in a fixed membership.

    Every member makes the group with the same peers (each names the others) and the same ``name``.

    :ivar peers: the other members
    """

    def __init__(self, engine: TransferEngine, board: GroupBoard, peers: Sequence[PeerAddress], name: str) -> None:
        """Claim the membership; use ``engine.group``.

        :raises UsageError: a peer is named twice, or is this engine
        :raises BusyError: this group is open here already
        """
        self.peers = tuple(peers)
        self.name = name
        incarnations = {peer.incarnation for peer in self.peers}
        if len(incarnations) != len(self.peers) or engine.address.incarnation in incarnations:
            raise UsageError("a group names each other member once, and not this engine")
        self._engine = engine
        self._board = board
        members = sorted((*incarnations, engine.address.incarnation))
        self.key = hashlib.sha256(b"\0".join((b"aio-transfer group", name.encode(), *members))).digest()
        # Two counters, for even and odd epochs. A member can be one epoch ahead of the slowest, and not two: it leaves
        # epoch k + 1 only when everybody has entered it. So a count of epoch k is never taken for one of k + 1.
        board.open(self)
        self._counters: tuple[ImmCounter, ImmCounter] = (engine.counter(), engine.counter())
        for counter in self._counters:
            counter.guarded = True
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
        return self._engine.submit_scatter(sources, targets, counters=counters)

    def _require_members(self, peers: Sequence[PeerAddress]) -> None:
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
        prepared = self._engine.prepare_scatter(source, targets, numbers)
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
                    note = self._engine.poster.notify(peer, self._board.counters_of(self, peer)[parity])
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
        self._engine.check()
        if self._closed:
            raise ClosedError(f"group {self.name!r}")


def _discard(members: dict[bytes, set[bytes]], key: bytes, member: bytes) -> bool:
    """Take a member out; whether it was in."""
    known = members.get(key, set())
    if member not in known:
        return False
    known.discard(member)
    if not known:
        del members[key]
    return True


def _kept(note: Transfer) -> bool:
    return note.done and note.exception() is None


class GroupBoard:
    """Which members of which groups have told us their barrier counters."""

    def __init__(self, engine: TransferEngine) -> None:
        """Begin empty."""
        self._engine = engine
        self._open: dict[bytes, PeerGroup] = {}
        self._joins: dict[bytes, dict[bytes, tuple[int, int]]] = {}
        self._left: dict[bytes, set[bytes]] = {}
        # A group that was closed can be made again, and members are not equally fast. Who has left and joined before we
        # left is in the next one already, unless it was not told of ours: then that is the one it is in. Who was still
        # in ours when we left will leave the one that is over.
        self._ahead: dict[bytes, set[bytes]] = {}
        self._behind: dict[bytes, set[bytes]] = {}
        self._passed: dict[bytes, dict[bytes, int]] = {}  # how many barriers a member had passed when it left
        # Members whose connection ended after one side had told the other: that is forgotten, also if they meet again.
        self._parted: dict[bytes, set[bytes]] = {}
        self._changed = anyio.Event()

    def open(self, group: PeerGroup) -> None:
        """Claim a membership.

        :raises BusyError: it is open
        """
        if group.key in self._open:
            raise BusyError(f"group {group.name!r}", "using")
        self._open[group.key] = group

    async def join(self, group: PeerGroup) -> None:
        """Tell every member our counters, and wait for theirs."""
        await for_each(group.peers, lambda peer: self._tell(group, peer))
        while True:
            joined = self._joins.get(group.key, {})
            missing = [peer for peer in group.peers if peer.incarnation not in joined]
            if not missing:
                return
            for peer in missing:
                gone = peer.incarnation in self._left.get(group.key, set()) | self._parted.get(group.key, set())
                if gone or self._engine.peering.peers.get(peer.incarnation) is None:
                    error = self._gone(group, peer.incarnation, peer.label)
                    raise error()
            await self._changed.wait()

    async def _tell(self, group: PeerGroup, peer: PeerAddress) -> None:
        bound = await self._engine.poster.bind(peer, None)
        group.told.add(peer.incarnation)
        self._engine.peering.tell(bound.peer, GroupJoin(group=group.key, counters=group.counter_ids))

    def counters_of(self, group: PeerGroup, peer: PeerAddress) -> tuple[int, int]:
        """Return a joined member's counters."""
        return self._joins[group.key][peer.incarnation]

    def require_members(self, group: PeerGroup) -> None:
        """Refuse a barrier that somebody can never enter.

        :raises TransferAbortedError: a member has left after fewer barriers than we have passed
        :raises PeerLostError: a member is gone
        """
        joined = self._joins.get(group.key, {})
        parted = self._parted.get(group.key, ())
        passed = self._passed.get(group.key, {})
        for peer in group.peers:
            if group.entered and passed.get(peer.incarnation, -1) > group.epoch:
                continue  # it was in this one, and so is everybody
            if peer.incarnation not in joined or peer.incarnation in parted or self._has_left(group, peer.incarnation):
                error = self._gone(group, peer.incarnation, peer.label)
                raise error()

    def _has_left(self, group: PeerGroup, incarnation: bytes) -> bool:
        """Whether a member has left the group as we know it; it may be in the next already."""
        return incarnation in self._left.get(group.key, ()) or incarnation in self._ahead.get(group.key, ())

    def _gone(self, group: PeerGroup, incarnation: bytes, label: str) -> Callable[[], AioTransferError]:
        if self._has_left(group, incarnation):
            return lambda: TransferAbortedError("barrier", "it left the group", peer=label)
        reason = self._engine.peering.lost.get(incarnation, "it is gone")
        return lambda: PeerLostError(label, reason, operation="barrier")

    def on_join(self, peer: Connection, frame: GroupJoin) -> None:
        """Note a member's counters, also before our own member object exists."""
        _discard(self._behind, frame.group, peer.incarnation)
        if frame.group in self._joins or len(self._joins) < _MAX_GROUPS:
            self._joins.setdefault(frame.group, {})[peer.incarnation] = frame.counters
            if _discard(self._left, frame.group, peer.incarnation) and self._is_told(frame.group, peer.incarnation):
                self._ahead.setdefault(frame.group, set()).add(peer.incarnation)
            else:
                self._passed.get(frame.group, {}).pop(peer.incarnation, None)
            self._notify()

    def _is_told(self, key: bytes, member: bytes) -> bool:
        group = self._open.get(key)
        return group is not None and member in group.told

    def on_leave(self, peer: Connection, frame: GroupLeave) -> None:
        """Note that a member is gone after so many barriers; those it has entered can still be passed."""
        if _discard(self._behind, frame.group, peer.incarnation):
            return
        was_ahead = _discard(self._ahead, frame.group, peer.incarnation)  # what it leaves now is the next one
        if frame.group in self._open and not was_ahead:
            self._passed.setdefault(frame.group, {})[peer.incarnation] = frame.epoch
        if frame.closing:
            return  # its goodbye follows, and says so better
        if frame.group in self._open:
            self._left.setdefault(frame.group, set()).add(peer.incarnation)
        self._remove(frame.group, peer)

    def on_fenced(self, peer: Connection) -> None:
        """Break the groups of a peer that is gone, except for barriers that it had passed when it took its leave."""
        for key, group in self._open.items():
            if any(member.incarnation == peer.incarnation for member in group.peers):
                self._parted.setdefault(key, set()).add(peer.incarnation)
        for members in (self._ahead, self._behind):
            for key in tuple(members):
                _discard(members, key, peer.incarnation)
        for key in tuple(self._joins):
            if peer.incarnation in self._joins[key]:
                self._remove(key, peer)
        self._notify()

    def _remove(self, key: bytes, peer: Connection) -> None:
        joins = self._joins.get(key, {})
        joins.pop(peer.incarnation, None)
        if not joins:
            self._joins.pop(key, None)
        group = self._open.get(key)
        passed = self._passed.get(key, {}).get(peer.incarnation, -1)
        if group is not None and peer.incarnation in group.told and passed <= group.epoch:
            for number in group.counter_ids:
                self._engine.counters.fail(number, self._gone(group, peer.incarnation, peer.label))
        self._notify()

    def leave(self, group: PeerGroup, *, closing: bool) -> None:
        """Give a membership up."""
        self._open.pop(group.key, None)
        ahead = self._ahead.pop(group.key, set())
        joins = self._joins.pop(group.key, {})
        if ahead:
            self._joins[group.key] = {member: joins[member] for member in ahead}
        if joins.keys() - ahead and len(self._behind) < _MAX_GROUPS:
            self._behind.setdefault(group.key, set()).update(joins.keys() - ahead)
        self._left.pop(group.key, None)
        self._passed.pop(group.key, None)
        self._parted.pop(group.key, None)
        for peer in group.peers:
            connection = self._engine.peering.peers.get(peer.incarnation)
            if connection is not None and connection.is_up:
                leave = GroupLeave(group=group.key, epoch=group.kept(closing=closing), closing=closing)
                self._engine.peering.tell(connection, leave)

    def close(self) -> None:
        """Close every group."""
        for group in tuple(self._open.values()):
            group.close(engine_closes=True)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
