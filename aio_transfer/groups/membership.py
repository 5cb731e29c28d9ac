"""Group membership: which members of which groups have joined, left or been lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from aio_transfer.control.frames import GroupJoin, GroupLeave
from aio_transfer.errors import BusyError, PeerLostError, TransferAbortedError
from aio_transfer.runtime.concurrency import for_each_concurrently

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.context import EngineContext
    from aio_transfer.errors import AioTransferError
    from aio_transfer.groups.group import PeerGroup
    from aio_transfer.peers.connection import Connection
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("MembershipTable",)

_MAX_GROUPS: Final = 4096


def _discard(members: dict[bytes, set[bytes]], key: bytes, member: bytes) -> bool:
    """Take a member out; whether it was in."""
    known = members.get(key, set())
    if member not in known:
        return False
    known.discard(member)
    if not known:
        del members[key]
    return True


class MembershipTable:
    """Which members of which groups have told us their barrier counters."""

    def __init__(self, context: EngineContext) -> None:
        """Begin empty."""
        self._context = context
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
        await for_each_concurrently(group.peers, lambda peer: self._tell(group, peer))
        while True:
            joined = self._joins.get(group.key, {})
            missing = [peer for peer in group.peers if peer.incarnation not in joined]
            if not missing:
                return
            for peer in missing:
                gone = peer.incarnation in self._left.get(group.key, set()) | self._parted.get(group.key, set())
                if gone or self._context.connections.peers.get(peer.incarnation) is None:
                    error = self._gone(group, peer.incarnation, peer.label)
                    raise error()
            await self._changed.wait()

    async def _tell(self, group: PeerGroup, peer: PeerInfo) -> None:
        bound = await self._context.routes.resolve(peer, None)
        group.told.add(peer.incarnation)
        self._context.connections.send_frame(bound.connection, GroupJoin(group=group.key, counters=group.counter_ids))

    def counters_of(self, group: PeerGroup, peer: PeerInfo) -> tuple[int, int]:
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
        reason = self._context.connections.lost.get(incarnation, "it is gone")
        return lambda: PeerLostError(label, reason, operation="barrier")

    def on_join(self, peer: Connection, frame: GroupJoin, _: tuple[int, ...] = ()) -> None:
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

    def on_leave(self, peer: Connection, frame: GroupLeave, _: tuple[int, ...] = ()) -> None:
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
                self._context.counters.fail(number, self._gone(group, peer.incarnation, peer.label))
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
            connection = self._context.connections.peers.get(peer.incarnation)
            if connection is not None and connection.is_up:
                leave = GroupLeave(group=group.key, epoch=group.kept(closing=closing), closing=closing)
                self._context.connections.send_frame(connection, leave)

    def close(self) -> None:
        """Close every group."""
        for group in tuple(self._open.values()):
            group.close(engine_closes=True)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
