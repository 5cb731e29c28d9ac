"""Membership state of one engine's groups, without an event loop: which memberships of which engines belong together.

Each time that an engine makes a group it begins a *membership* with a random id. The same group can be made again and
again, members are not equally fast, and each may leave before the others notice. So all members must agree which of
their memberships belong together:

- The *leader* of a group is the member with the smallest incarnation. Each of its memberships is an *instance* of the
  group. Every other membership belongs to at most one instance, which its first barrier chooses and which never
  changes.
- A join names the instance. Two memberships are *paired* when both have joined the same instance. Only paired members
  know each other's barrier counters, so no count, join or leave of another membership can reach a barrier.
- A membership without an instance comes to no barrier. When a member leaves such a membership, each side matches it
  with one of the other in the order of time: the first with the first. Pairing, and a leave that names the membership
  it ``met``, say more than the order does, and replace it.

What one member does, as a membership of ours sees it (frames of one connection arrive in order):

======================================  ========================  =====================================================
event                                   our membership            effect
======================================  ========================  =====================================================
first barrier                           leads                     it is an instance: join to all
first barrier                           leader's join is known    it joins that instance: join to all
first barrier                           otherwise                 join without an instance: we wait for the leader
join of the leader                      in its first barrier      it joins that instance: join to all
join, our instance                      any                       paired
join, other instance                    any                       kept for our next membership; *absent* ends
leave, our instance                     any                       departed; barriers that it passed still complete
leave, closing                          any                       only its epoch counts: a goodbye follows
leave of the instance we could join     first barrier to come     absent
leave, instance that we are not in      any                       kept: who joins that instance finds a member departed
leave, no instance, met ours            not paired                absent
leave, no instance                      a former one unmatched    matched with the oldest such
leave, no instance                      not paired                absent, and matched with ours
connection ends                         was open on it            departed; all that is known of the member is dropped
======================================  ========================  =====================================================

A departure is final: the membership passes no further barrier. While a member is only *absent* (it left before it met
us), a barrier fails too, but the member's next join ends that.

Everything is kept per connection: two engines that meet again begin anew, also where frames of the new connection
arrive before the old one's end is handled.

:source: docs/explanation/contract.md, rules 8 and 10
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from msgspec import Struct, field

from aio_transfer.control.frames import GroupJoin, GroupLeave
from aio_transfer.driver.records import CounterId
from aio_transfer.groups.barrier_state import BarrierState, Departure

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("BarrierCounter", "Frames", "Membership", "MembershipState")

_MAX_REMOTES: Final = 1 << 15
"""Joins that are kept, of all members of all groups: what peers send must not take memory without a bound."""
_MAX_UNMATCHED: Final = 4096
_MAX_FORMER: Final = 64

Frames: TypeAlias = list[tuple[int, GroupJoin | GroupLeave]]
"""Frames to send, each with the connection that takes it."""
_Slot: TypeAlias = tuple[bytes, int]
"""A group key and a connection."""


class BarrierCounter(Protocol):
    """A completion counter, as a membership needs it."""

    @property
    def id(self) -> CounterId:
        """The id that other members raise."""
        ...

    async def wait(self, count: int = 1) -> None:
        """Wait for so many counts."""
        ...

    def close(self) -> None:
        """Drop it."""
        ...


class RemoteMembership(Struct, eq=False):
    """A membership of another engine, as its join announced it.

    :param instance: the leader's membership that it belongs to; empty while it waits for the leader
    :param is_used: a membership of ours was paired with it or declined it: another one must not be
    :param has_left: it has left an instance that we are not in
    """

    id: bytes
    instance: bytes
    counters: tuple[int, int]
    is_used: bool = False
    has_left: bool = False

    @property
    def is_instance(self) -> bool:
        """Whether it is its leader's, and can be joined."""
        return self.instance == self.id and not self.is_used and not self.has_left


class Unmatched(Struct, eq=False):
    """Memberships that ended without an instance, or before the other side had come: one side's are ahead.

    :param ours: id and instance of those of ours that no membership of the member's was matched with
    :param theirs: how many of the member's have ended that no membership of ours was matched with
    """

    ours: deque[tuple[bytes, bytes]] = field(default_factory=lambda: deque(maxlen=_MAX_FORMER))
    theirs: int = 0


class Member(Struct, eq=False):
    """Another member, as one membership of ours sees it.

    :param connection: its number; 0 before there is one
    :param paired: the membership of the member's that is in our instance
    :param is_absent: it has left before it met us
    :param is_matched: one of its memberships that ended was matched with ours
    """

    label: str
    connection: int = 0
    paired: RemoteMembership | None = None
    is_absent: bool = False
    is_matched: bool = False


class Membership:
    """One open membership of ours.

    :ivar id: random; of this membership alone
    :ivar instance: the leader's membership that it belongs to; empty before that is known
    :ivar members: the other members, by incarnation
    :ivar leader: incarnation of the leader; empty if that is us
    :ivar is_started: whether its first barrier was called
    """

    __slots__ = (
        "_unpaired",
        "barrier",
        "counters",
        "id",
        "instance",
        "is_closed",
        "is_started",
        "key",
        "leader",
        "members",
    )

    def __init__(
        self,
        key: bytes,
        identity: bytes,
        me: bytes,
        members: Iterable[tuple[bytes, str]],
        counters: tuple[BarrierCounter, BarrierCounter],
    ) -> None:
        """Begin outside of any instance.

        :param members: incarnation and label of every other member
        """
        self.key = key
        self.id = identity
        self.counters = counters
        self.barrier = BarrierState()
        self.members = {incarnation: Member(label) for incarnation, label in members}
        smallest = min((me, *self.members))
        self.leader = b"" if smallest == me else smallest
        self.instance = b""
        self.is_started = False
        self.is_closed = False
        self._unpaired = len(self.members)

    @property
    def is_joined(self) -> bool:
        """Whether every other member is paired with it."""
        return not self._unpaired

    def pair(self, incarnation: bytes, remote: RemoteMembership) -> None:
        """Take a member's membership for that of our instance. Idempotent."""
        member = self.members[incarnation]
        if member.paired is None:
            self._unpaired -= 1
        member.paired = remote
        member.is_absent = False

    def counter_of(self, incarnation: bytes) -> int:
        """Return the counter of a paired member's that the present epoch raises."""
        paired = self.members[incarnation].paired
        if paired is None:
            raise LookupError(incarnation)
        return paired.counters[self.barrier.parity]

    def blocked_by(self) -> tuple[bytes, Departure] | None:
        """Return a member without which the present epoch cannot be passed, and why."""
        incarnation = self.barrier.blocked_by()
        if incarnation is not None:
            return incarnation, self.barrier.departures[incarnation]
        if self._unpaired:
            for incarnation, member in self.members.items():
                if member.is_absent:
                    return incarnation, Departure.LEFT
        return None


class MembershipState:
    """All memberships of one engine, and what is known of other members' memberships.

    :ivar open: our memberships, by group key
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.open: dict[bytes, Membership] = {}
        self._remotes: dict[_Slot, RemoteMembership] = {}
        self._unmatched: dict[_Slot, Unmatched] = {}

    # ------------------------------------------------------------------------------------------------ our memberships

    def claim(self, membership: Membership) -> None:
        """Begin a membership; none of its group is open."""
        self.open[membership.key] = membership

    def attach(self, membership: Membership, incarnation: bytes, connection: int) -> None:
        """Record by which connection a member is reached, for as long as the membership lasts."""
        member = membership.members[incarnation]
        member.connection = connection
        unmatched = self._unmatched.get((membership.key, connection))
        if unmatched is not None and unmatched.theirs:
            unmatched.theirs -= 1
            member.is_matched = True
            self._drop_matched((membership.key, connection))

    def start(self, membership: Membership) -> Frames:
        """Begin the first barrier. Idempotent."""
        if membership.is_started:
            return []
        membership.is_started = True
        if not membership.leader:
            membership.instance = membership.id
            return _joins(membership)
        return self._join_instance(membership) or _joins(membership)

    def leave(self, membership: Membership, *, closing: bool) -> Frames:
        """End a membership.

        :param closing: because the engine closes
        """
        membership.is_closed = True
        self.open.pop(membership.key, None)
        membership.instance = membership.instance or self._declined_instance(membership)
        epoch = membership.barrier.confirmed_epochs(closing=closing)
        frames: Frames = []
        for incarnation, member in membership.members.items():
            if member.connection:
                met = self._end(membership, incarnation, member)
                leave = GroupLeave(
                    membership.key, membership.id, membership.instance, met=met, epoch=epoch, closing=closing
                )
                frames.append((member.connection, leave))
        return frames

    def _declined_instance(self, membership: Membership) -> bytes:
        """Return the instance that a membership without one could have joined: it leaves that."""
        leader = membership.members.get(membership.leader)
        if leader is None or leader.is_matched:  # a former instance was this one's; the present is for our next
            return b""
        remote = self._remotes.get((membership.key, leader.connection))
        return remote.id if remote is not None and remote.is_instance else b""

    def _end(self, membership: Membership, incarnation: bytes, member: Member) -> bytes:
        """End a membership with one member.

        :returns: the member's membership that it met without being paired
        """
        slot = membership.key, member.connection
        remote = self._remotes.get(slot)
        if remote is not None and membership.instance and remote.instance == membership.instance:
            remote.is_used = True
            return b""
        if incarnation in membership.barrier.departures or member.is_matched:
            return b""
        self._unmatched_of(slot).ours.append((membership.id, membership.instance))
        return b"" if remote is None or remote.is_used or remote.has_left else remote.id

    def _join_instance(self, membership: Membership) -> Frames:
        """Join the leader's instance, if its join has come and no former membership of ours has used it."""
        slot = membership.key, membership.members[membership.leader].connection
        remote = self._remotes.get(slot)
        if remote is None or not remote.is_instance:
            return []
        membership.instance = remote.id
        for incarnation, member in membership.members.items():
            self._pair(membership, incarnation, member)
        return _joins(membership)

    def _pair(self, membership: Membership, incarnation: bytes, member: Member) -> None:
        """Pair a member's membership with ours, if it is of the same instance."""
        slot = membership.key, member.connection
        remote = self._remotes.get(slot)
        if remote is None or remote.instance != membership.instance or incarnation in membership.barrier.departures:
            return
        self._unmatched.pop(slot, None)
        if remote.has_left:
            del self._remotes[slot]
            membership.barrier.depart(incarnation, Departure.LEFT)
        else:
            membership.pair(incarnation, remote)

    # -------------------------------------------------------------------------------------------------- other members

    def on_join(self, incarnation: bytes, connection: int, frame: GroupJoin) -> Frames:
        """Handle a member's join, also before our own membership exists."""
        slot = frame.group, connection
        if slot not in self._remotes and len(self._remotes) >= _MAX_REMOTES:
            return []
        is_former = self._match_former(slot, frame.instance)
        self._remotes[slot] = RemoteMembership(frame.membership, frame.instance, frame.counters, is_used=is_former)
        found = self._find(incarnation, slot)
        if found is None:
            return []
        membership, member = found
        member.is_absent = False
        if membership.instance:
            self._pair(membership, incarnation, member)
        elif membership.is_started and incarnation == membership.leader:
            return self._join_instance(membership)
        return []

    def on_leave(self, incarnation: bytes, connection: int, frame: GroupLeave) -> None:
        """Handle the end of a member's membership."""
        slot = frame.group, connection
        found = self._find(incarnation, slot)
        is_of_ours = found is not None and bool(frame.instance) and frame.instance == found[0].instance
        if found is not None and is_of_ours:
            found[0].barrier.report_passed(incarnation, frame.epoch)
        if frame.closing:
            return  # the end of the connection follows, and is the better reason
        remote = self._remotes.get(slot)
        if remote is not None and remote.id == frame.membership:
            del self._remotes[slot]
        else:
            remote = None
        if found is not None and is_of_ours:
            found[0].barrier.depart(incarnation, Departure.LEFT)
        elif not frame.instance or (remote is not None and remote.is_instance):
            self._match_leave(slot, frame.met, found)
        elif not self._match_former(slot, frame.instance) and (remote is None or not remote.is_used):
            self._keep_leave(slot, frame, found)

    def on_end(self, incarnation: bytes, connection: int) -> None:
        """Handle the end of a member's connection: all that was sent over it has been handled."""
        self._remotes = {slot: one for slot, one in self._remotes.items() if slot[1] != connection}
        self._unmatched = {slot: one for slot, one in self._unmatched.items() if slot[1] != connection}
        for membership in self.open.values():
            member = membership.members.get(incarnation)
            if member is not None and member.connection == connection:
                membership.barrier.depart(incarnation, Departure.LEFT if member.is_absent else Departure.LOST)

    def _find(self, incarnation: bytes, slot: _Slot) -> tuple[Membership, Member] | None:
        """Return our open membership of a group and the member in it, if it is reached by that connection."""
        membership = self.open.get(slot[0])
        if membership is None:
            return None
        member = membership.members.get(incarnation)
        return (membership, member) if member is not None and member.connection == slot[1] else None

    def _keep_leave(self, slot: _Slot, frame: GroupLeave, found: tuple[Membership, Member] | None) -> None:
        """Keep the leave of an instance that we may join yet, when its leader's join comes late."""
        may_join = found is None or (found[0].leader and not found[0].instance)
        if may_join and frame.instance != frame.membership and len(self._remotes) < _MAX_REMOTES:
            self._remotes[slot] = RemoteMembership(frame.membership, frame.instance, (0, 0), has_left=True)

    def _match_leave(self, slot: _Slot, met: bytes, found: tuple[Membership, Member] | None) -> None:
        """Match a member's membership that ended without an instance with one of ours."""
        if met and (found is None or met != found[0].id):
            self._match_former(slot, met)
            return
        if met:
            self._unmatched.pop(slot, None)  # it came to this one, so it will come to none before
        unmatched = self._unmatched.get(slot)
        if unmatched is not None and unmatched.ours:
            unmatched.ours.popleft()
            self._drop_matched(slot)
            return
        if found is not None and found[1].paired is None:
            found[1].is_absent = True
            if not found[1].is_matched:
                found[1].is_matched = True
                return
        self._unmatched_of(slot).theirs += 1

    def _match_former(self, slot: _Slot, identity: bytes) -> bool:
        """Match one of ours that ended, and those before it; ``False`` if no such is unmatched.

        :param identity: of the membership, or of its instance
        """
        unmatched = self._unmatched.get(slot)
        if unmatched is None or not identity or not any(identity in one for one in unmatched.ours):
            return False
        while identity not in unmatched.ours.popleft():
            pass
        self._drop_matched(slot)
        return True

    def _unmatched_of(self, slot: _Slot) -> Unmatched:
        found = self._unmatched.get(slot)
        if found is None:
            if len(self._unmatched) >= _MAX_UNMATCHED:
                del self._unmatched[next(iter(self._unmatched))]
            found = self._unmatched[slot] = Unmatched()
        return found

    def _drop_matched(self, slot: _Slot) -> None:
        """Drop what stands for nothing any more."""
        unmatched = self._unmatched[slot]
        if not unmatched.ours and not unmatched.theirs:
            del self._unmatched[slot]


def _joins(membership: Membership) -> Frames:
    even, odd = membership.counters
    join = GroupJoin(membership.key, membership.id, membership.instance, (even.id, odd.id))
    return [(member.connection, join) for member in membership.members.values()]
