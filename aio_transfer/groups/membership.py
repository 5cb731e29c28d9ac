"""Membership table of one engine: connects the loop-free membership state to connections, counters and waiting tasks.

The rules are in :mod:`~aio_transfer.groups.membership_state`.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import anyio

from aio_transfer.control.frames import MEMBERSHIP_NBYTES
from aio_transfer.errors import BusyError, PeerLostError, TransferAbortedError, UsageError
from aio_transfer.groups.barrier_state import Departure
from aio_transfer.groups.membership_state import Membership, MembershipState
from aio_transfer.runtime.concurrency import for_each_concurrently

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_transfer.context import EngineContext
    from aio_transfer.control.frames import GroupJoin, GroupLeave
    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.errors import AioTransferError
    from aio_transfer.groups.membership_state import Frames
    from aio_transfer.peers.connection import Connection
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("MembershipTable",)


class MembershipTable:
    """Memberships of one engine: sends and receives their frames, and wakes the tasks that wait for members."""

    def __init__(self, context: EngineContext) -> None:
        """Begin without memberships."""
        self._context = context
        self._state = MembershipState()
        self._changed = anyio.Event()

    async def open(self, peers: Sequence[PeerInfo], name: str) -> Membership:
        """Connect to the other members and begin a membership.

        :raises UsageError: a peer is named twice, or is this engine
        :raises BusyError: this group is open here already
        :raises PeerLostError: a member cannot be reached
        """
        me = self._context.address.incarnation
        members = {me, *(peer.incarnation for peer in peers)}
        if len(members) != len(peers) + 1:
            raise UsageError("a group names each other member once, and not this engine")
        key = hashlib.sha256(b"\0".join((b"aio-transfer group", name.encode(), *sorted(members)))).digest()
        if key in self._state.open:
            raise BusyError(f"group {name!r}", "using")
        labels = [(peer.incarnation, peer.label) for peer in peers]
        membership = Membership(key, os.urandom(MEMBERSHIP_NBYTES), me, labels, (self._counter(), self._counter()))
        self._state.claim(membership)
        try:
            await self._connect(membership, peers)
        except BaseException:
            self.leave(membership)
            raise
        return membership

    def _counter(self) -> ImmCounter:
        # Failed here, when a member departs: the table would fail it for one that has passed, too.
        return self._context.counters.create(guarded=True)

    async def _connect(self, membership: Membership, peers: Sequence[PeerInfo]) -> None:
        connections = [self._context.connections.ensure(peer) for peer in peers]
        # Those that are up at once, before another task runs: what comes over them from here on is for this membership.
        pending = [connection for connection in connections if not connection.is_up]
        for connection in connections:
            if connection.is_up:
                self._state.attach(membership, connection.incarnation, connection.number)
        for connection in pending:
            await connection.wait_ready()
            self._state.attach(membership, connection.incarnation, connection.number)
        for connection in connections:
            await connection.wait_ready()

    async def join(self, membership: Membership, peers: Sequence[PeerInfo]) -> None:
        """Wait until every other member is in the same instance of the group.

        :raises TransferAbortedError: a member has left
        :raises PeerLostError: a member is gone
        :cancellation: we stay willing to join; the next call goes on waiting
        """
        self._require_connected(membership)
        await for_each_concurrently(peers, lambda peer: self._context.routes.resolve(peer, None))
        self._require_connected(membership)  # what is bound may be another connection by now
        self._send(self._state.start(membership))
        while not membership.is_joined:
            self.require_members(membership)
            self._require_connected(membership)
            await self._changed.wait()

    def require_members(self, membership: Membership) -> None:
        """Refuse a barrier that a member can never enter.

        :raises TransferAbortedError: a member has left after fewer barriers than we have passed
        :raises PeerLostError: a member is gone
        """
        blocked = membership.blocked_by()
        if blocked is not None:
            error = self._failure(membership, *blocked)
            raise error()

    def _require_connected(self, membership: Membership) -> None:
        for incarnation, member in membership.members.items():
            connection = self._context.connections.peers.get(incarnation)
            if connection is None or connection.number != member.connection:
                self.require_members(membership)  # its end may be handled already, and is the better reason
                error = self._failure(membership, incarnation, Departure.LOST)
                raise error()

    def _failure(
        self, membership: Membership, incarnation: bytes, departure: Departure
    ) -> Callable[[], AioTransferError]:
        label = membership.members[incarnation].label
        if departure is Departure.LEFT:
            return lambda: TransferAbortedError("barrier", "it left the group", peer=label)
        reason = self._context.connections.lost.get(incarnation, "it is gone")
        return lambda: PeerLostError(label, reason, operation="barrier")

    def leave(self, membership: Membership, *, closing: bool = False) -> None:
        """End a membership; members still in a barrier get :class:`TransferAbortedError`. Idempotent.

        :param closing: because the engine closes
        """
        if membership.is_closed:
            return
        self._send(self._state.leave(membership, closing=closing))
        for counter in membership.counters:
            counter.close()

    def close(self) -> None:
        """End every membership, since the engine closes."""
        for membership in tuple(self._state.open.values()):
            self.leave(membership, closing=True)

    def on_join(self, peer: Connection, frame: GroupJoin, _: tuple[int, ...] = ()) -> None:
        """Handle a member's join."""
        self._send(self._state.on_join(peer.incarnation, peer.number, frame))
        self._on_change(self._state.open.get(frame.group))

    def on_leave(self, peer: Connection, frame: GroupLeave, _: tuple[int, ...] = ()) -> None:
        """Handle a member's leave."""
        self._state.on_leave(peer.incarnation, peer.number, frame)
        self._on_change(self._state.open.get(frame.group))

    def on_fenced(self, peer: Connection) -> None:
        """Handle the end of a connection, after all of its counts have been delivered."""
        self._state.on_end(peer.incarnation, peer.number)
        for membership in self._state.open.values():
            if peer.incarnation in membership.members:
                self._on_change(membership)

    def _send(self, frames: Frames) -> None:
        for number, frame in frames:
            connection = self._context.connections.find(number)
            if connection is not None and connection.is_up:
                self._context.connections.send_frame(connection, frame)

    def _on_change(self, membership: Membership | None) -> None:
        """Wake those who wait for members, and fail a barrier that cannot be passed any more."""
        if membership is None:
            return
        blocked = membership.barrier.blocked_by()
        if blocked is not None:
            failure = self._failure(membership, blocked, membership.barrier.departures[blocked])
            for counter in membership.counters:
                self._context.counters.fail(counter.id, failure)
        self._changed.set()
        self._changed = anyio.Event()
