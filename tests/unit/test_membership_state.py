"""Membership state: two engines make, use and leave one group in every order, without an event loop.

A script plays both sides. ``A`` leads (its incarnation is smaller), ``B`` follows. ``A+`` opens a membership, ``A!``
begins its first barrier, ``A-`` leaves it, ``A~`` leaves it since the engine closes; ``>`` delivers the oldest frame
from A to B, ``<`` the oldest from B to A, ``*`` delivers all; ``x`` ends the connection on both sides after that.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.groups.barrier_state import Departure
from aio_transfer.groups.membership_state import Membership, MembershipState

KEY, A, B = b"k" * 32, b"a" * 16, b"b" * 16
LEFT, LOST = Departure.LEFT, Departure.LOST


class Side:
    """One engine."""

    def __init__(self, me: bytes, other: bytes) -> None:
        self.me, self.other = me, other
        self.state = MembershipState()
        self.membership: Membership | None = None
        self.connection = 1
        self.out: deque[object] = deque()
        self.used: set[tuple[int, bytes]] = set()

    def post(self, frames: list[tuple[int, object]]) -> None:
        self.out += [frame for number, frame in frames if number == self.connection]

    def outcome(self) -> object:
        """Return ``None`` without a membership, why it is blocked, or whether it is joined."""
        if self.membership is None:
            return None
        blocked = self.membership.blocked_by()
        return blocked[1] if blocked is not None else self.membership.is_joined


class Play:
    """Both engines, and the frames between them."""

    def __init__(self) -> None:
        self.sides = {"A": Side(A, B), "B": Side(B, A)}
        self._ids = itertools.count(1)

    def run(self, script: str) -> Play:
        for step in re.findall(r"[AB][+!~-]|[><*x]", script):
            self.step(step)
        return self

    def step(self, step: str) -> None:
        a, b = self.sides.values()
        match step:
            case ">":
                self.deliver(a, b)
            case "<":
                self.deliver(b, a)
            case "*" | "x":
                while a.out or b.out:
                    self.deliver(a, b)
                    self.deliver(b, a)
                if step == "x":
                    for side in (a, b):
                        side.state.on_end(side.other, side.connection)
                        side.connection += 1
            case _:
                self.act(self.sides[step[0]], step[1])

    def deliver(self, sender: Side, receiver: Side) -> None:
        if sender.out:
            frame = sender.out.popleft()
            if hasattr(frame, "counters"):
                receiver.post(receiver.state.on_join(sender.me, receiver.connection, frame))
            else:
                receiver.state.on_leave(sender.me, receiver.connection, frame)

    def act(self, side: Side, action: str) -> None:
        current = side.membership
        if action == "+" and current is None:
            number = next(self._ids)
            counters = tuple(SimpleNamespace(id=2 * number + parity) for parity in (0, 1))
            made = Membership(KEY, number.to_bytes(16), side.me, [(side.other, "other")], counters)
            side.state.claim(made)
            side.state.attach(made, side.other, side.connection)
            side.membership = made
        elif action == "!" and current is not None:
            side.post(side.state.start(current))
        elif action in "-~" and current is not None:
            side.post(side.state.leave(current, closing=action == "~"))
            side.membership = None


CASES: dict[str, tuple[str, object, object]] = {
    # name: script, what A's membership has come to, and B's
    "nobody has begun": ("A+ B+", False, False),
    "the leader alone has begun": ("A+ B+ A! *", False, False),
    "the follower alone has begun": ("A+ B+ B! *", False, False),
    "leader, then follower": ("A+ B+ A! * B! *", True, True),
    "follower, then leader": ("A+ B+ B! * A! *", True, True),
    "both at once": ("A+ B+ A! B! *", True, True),
    "the leader's join comes before the follower opens": ("A+ A! * B+ B! *", True, True),
    "the follower's join comes before the leader opens": ("B+ B! * A+ A! *", True, True),
    "frames under way": ("A+ B+ A! B!", False, False),
    "the leader's join has come": ("A+ B+ A! B! >", False, True),
    "the follower leaves after both have joined": ("A+ B+ A! B! * B- *", LEFT, None),
    "the leader leaves after both have joined": ("A+ B+ A! B! * A- *", None, LEFT),
    "the follower leaves before it begins": ("A+ B+ A! * B- *", LEFT, None),
    "the leader leaves before it begins": ("A+ B+ B! * A- *", None, LEFT),
    "the follower leaves, nobody had begun": ("A+ B+ B- * A! *", LEFT, None),
    "the follower closes": ("A+ B+ A! B! * B~ *", True, None),
    "the follower closes and its connection ends": ("A+ B+ A! B! * B~ x", LOST, None),
    "the leader closes and its connection ends": ("A+ B+ A! B! * A~ x", None, LOST),
    "the connection ends before anybody has begun": ("A+ B+ x", LOST, LOST),
    "the connection ends after both have joined": ("A+ B+ A! B! * x", LOST, LOST),
    "the connection ends with joins under way": ("A+ B+ A! B! x", LOST, LOST),
    "both leave and make it again": ("A+ B+ A! B! * A- B- * A+ B+ A! B! *", True, True),
    "the follower makes it again first": ("A+ B+ A! B! * B- B+ B! * A- A+ A! *", True, True),
    "the leader makes it again first": ("A+ B+ A! B! * A- A+ A! * B- B+ B! *", True, True),
    "the follower makes it again, the leader stays": ("A+ B+ A! B! * B- B+ B! *", LEFT, False),
    "the leader makes it again, the follower stays": ("A+ B+ A! B! * A- A+ A! *", False, LEFT),
    "made again with all frames under way": ("A+ B+ A! B! A- B- A+ B+ A! B! *", False, LEFT),
    "made again without a barrier": ("A+ B+ A- B- * A+ B+ A! B! *", True, True),
    "made again after the follower's barrier failed": ("A+ B+ B! A- * B- A+ B+ A! B! *", True, True),
    "three times": ("A+ B+ A! B! * A- B- A+ B+ A! B! * A- B- A+ B+ A! B! *", True, True),
    "made again after the connection ended": ("A+ B+ A! B! * x A- B- A+ B+ A! B! *", True, True),
    "made again over a new connection, one side late": ("A+ B+ A! B! * x A- A+ A! * B- B+ B! *", True, True),
    "the leader opened twice before the follower once": ("A+ A! A- A+ A! * B+ B! *", True, True),
    "a join of a membership that has left": ("A+ A! A- * B+ B! *", None, False),
}


@pytest.mark.parametrize(("script", "leader", "follower"), CASES.values(), ids=CASES)
def test_memberships_are_paired_or_end_with_a_reason(script: str, leader: object, follower: object) -> None:
    play = Play().run(script)
    assert (play.sides["A"].outcome(), play.sides["B"].outcome()) == (leader, follower)


STEPS = st.lists(st.sampled_from(["A+", "A!", "A-", "B+", "B!", "B-", ">", "<", "*", "x"]), max_size=40)


@given(STEPS)
def test_paired_memberships_know_each_others_counters(steps: list[str]) -> None:
    """In any order: two memberships that are both joined and unblocked are of one instance, with matching counters."""
    play = Play()
    for step in steps:
        play.step(step)
        a, b = play.sides["A"].membership, play.sides["B"].membership
        if a is None or b is None or a.barrier.departures or b.barrier.departures:
            continue
        if a.is_joined and b.is_joined and not play.sides["A"].out and not play.sides["B"].out:
            assert a.instance == b.instance == a.id
            assert a.counter_of(B) == b.counters[0].id
            assert b.counter_of(A) == a.counters[0].id


@given(STEPS)
def test_two_barriers_never_wait_for_each_other(steps: list[str]) -> None:
    """After all frames, if both have begun: both are joined, or at least one of them fails with a reason."""
    play = Play().run(" ".join(steps)).run("*")
    memberships = [side.membership for side in play.sides.values()]
    if all(membership is not None and membership.is_started for membership in memberships):
        outcomes = [side.outcome() for side in play.sides.values()]
        assert outcomes == [True, True] or any(isinstance(outcome, Departure) for outcome in outcomes)
