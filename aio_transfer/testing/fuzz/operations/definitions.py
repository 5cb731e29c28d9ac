"""What a random schedule is made of: moves as plain data, so that any part of a schedule is a schedule.

The numbers of a move are taken modulo what exists when its turn comes: ``by=7`` among three engines is the second. A
move that means nothing then (to wait for a peer when there is none) does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = (
    "SIZES",
    "Cancel",
    "CancelledWrite",
    "CloseEngine",
    "CloseSource",
    "CloseTarget",
    "Connect",
    "Cut",
    "Disconnect",
    "DrainQueues",
    "Enter",
    "FailCompletions",
    "FailPosts",
    "FillQueues",
    "Flood",
    "Heal",
    "Hold",
    "Kill",
    "Move",
    "Notify",
    "Overwait",
    "Read",
    "Receive",
    "Recount",
    "Release",
    "Reopen",
    "Resume",
    "Scatter",
    "Send",
    "Stale",
    "Stall",
    "Turns",
    "Wait",
    "Write",
    "WritePages",
    "show",
)

SIZES: Final = (8, 0, 1, 100, 4096, 640, 8193, 20000, 33, 8192, 2500, 140_001)
"""Of chunks, in bytes, by number: around the packet, the page, and 128 KiB, above which a write is spread over NICs."""


@dataclass(frozen=True, slots=True)
class Move:
    """One thing to do."""


@dataclass(frozen=True, slots=True)
class Write(Move):
    """Engine ``by`` writes from offset ``at`` to a target of engine ``to``; it counts once, or not (``quiet`` 3)."""

    by: int
    to: int
    slot: int
    size: int
    at: int
    quiet: int


@dataclass(frozen=True, slots=True)
class WritePages(Move):
    """Engine ``by`` writes ``count`` pages, shuffled on both sides; each counts once."""

    by: int
    to: int
    slot: int
    size: int
    count: int
    order: int


@dataclass(frozen=True, slots=True)
class Scatter(Move):
    """Engine ``by`` writes a slice to every other engine, or two."""

    by: int
    slot: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Notify(Move):
    """Engine ``by`` raises the counter of ``to`` by one."""

    by: int
    to: int


@dataclass(frozen=True, slots=True)
class Flood(Move):
    """Engine ``by`` starts ``count`` small writes at once; where its reports are held, they will come at once too."""

    by: int
    to: int
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class CancelledWrite(Move):
    """A write that is cancelled before its first step."""

    by: int
    to: int
    slot: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Read(Move):
    """Engine ``by`` reads from offset ``at`` of engine ``of``'s source."""

    by: int
    of: int
    slot: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Stale(Move):
    """Engine ``by`` writes with a descriptor of a region that its owner has closed."""

    by: int
    which: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Enter(Move):
    """Engine ``by`` enters the barrier of the group of all engines."""

    by: int


@dataclass(frozen=True, slots=True)
class Send(Move):
    """Engine ``by`` sends a message."""

    by: int
    to: int
    size: int


@dataclass(frozen=True, slots=True)
class Receive(Move):
    """Engine ``at`` begins to wait for a message."""

    at: int


@dataclass(frozen=True, slots=True)
class Wait(Move):
    """Engine ``at`` begins to wait for some of the counts that are promised, and not waited for."""

    at: int
    count: int


@dataclass(frozen=True, slots=True)
class Overwait(Move):
    """Engine ``at`` begins to wait for more counts than are promised."""

    at: int
    more: int


@dataclass(frozen=True, slots=True)
class Recount(Move):
    """Engine ``at`` closes its counter, whatever is on its way, and makes another."""

    at: int


@dataclass(frozen=True, slots=True)
class Cancel(Move):
    """Whatever await is the ``which``-th is cancelled after ``turns``, or in the very tick in which it is to end.

    By its scope; as a task where ``how`` is odd and the loop is asyncio's.
    """

    which: int
    how: int
    turns: int


@dataclass(frozen=True, slots=True)
class Turns(Move):
    """The event loop turns ``count`` times."""

    count: int


@dataclass(frozen=True, slots=True)
class CloseSource(Move):
    """Engine ``of`` begins to close its source; once that has returned, it is scribbled over."""

    of: int


@dataclass(frozen=True, slots=True)
class CloseTarget(Move):
    """Engine ``of`` begins to close a target; once that has returned, nothing may change there."""

    of: int
    slot: int


@dataclass(frozen=True, slots=True)
class Reopen(Move):
    """Engine ``of`` registers again what it has closed."""

    of: int


@dataclass(frozen=True, slots=True)
class Connect(Move):
    """Engine ``by`` connects to another, if it is not."""

    by: int
    to: int


@dataclass(frozen=True, slots=True)
class Disconnect(Move):
    """Engine ``by`` says goodbye to another; the next operation connects them again."""

    by: int
    to: int


@dataclass(frozen=True, slots=True)
class CloseEngine(Move):
    """An engine closes, whatever it is doing."""

    which: int


@dataclass(frozen=True, slots=True)
class Kill(Move):
    """An engine is gone, as by ``kill -9``."""

    which: int


@dataclass(frozen=True, slots=True)
class Cut(Move):
    """Packets between two engines wait."""

    one: int
    other: int


@dataclass(frozen=True, slots=True)
class Heal(Move):
    """They go on."""

    one: int
    other: int


@dataclass(frozen=True, slots=True)
class Stall(Move):
    """A NIC stands still; with ``nic`` 0, all of the engine's."""

    of: int
    nic: int


@dataclass(frozen=True, slots=True)
class Resume(Move):
    """All NICs of an engine go on."""

    of: int


@dataclass(frozen=True, slots=True)
class FailPosts(Move):
    """The next posts of an engine fail."""

    of: int
    count: int


@dataclass(frozen=True, slots=True)
class FailCompletions(Move):
    """The next pieces of an engine fail after half of their bytes."""

    of: int
    count: int


@dataclass(frozen=True, slots=True)
class FillQueues(Move):
    """Whatever an engine posts finds no room."""

    of: int


@dataclass(frozen=True, slots=True)
class DrainQueues(Move):
    """It finds room again."""

    of: int


@dataclass(frozen=True, slots=True)
class Hold(Move):
    """What an engine's NICs complete is not reported."""

    of: int


@dataclass(frozen=True, slots=True)
class Release(Move):
    """It is reported, all at once."""

    of: int


def show(moves: Sequence[Move] | Iterable[Move]) -> str:
    """Return Python that makes the same list, to be pasted into a test."""
    return "[\n" + "".join(f"    {move!r},\n" for move in moves) + "]"
