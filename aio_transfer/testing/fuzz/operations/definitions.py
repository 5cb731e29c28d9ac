"""Operations of random schedules, as plain data: every part of a schedule is a schedule, too.

The numbers of an operation are taken modulo the number of candidates when it is performed: ``by=7`` among three engines
selects the second. An operation without candidates (a write when there is no other engine) does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = (
    "SIZES",
    "CancelTask",
    "CancelledWrite",
    "CloseEngine",
    "CloseSourceRegion",
    "CloseTargetRegion",
    "ConnectPeer",
    "CutPath",
    "DisconnectPeer",
    "DrainQueues",
    "EnterBarrier",
    "FailCompletions",
    "FailPosts",
    "FillQueues",
    "HealPath",
    "HoldCompletions",
    "KillEngine",
    "NotifyPeer",
    "Operation",
    "ReadSlice",
    "ReceiveMessage",
    "ReleaseCompletions",
    "ReopenRegions",
    "ReplaceCounter",
    "ResumeNics",
    "ScatterSlices",
    "SendMessage",
    "StallNics",
    "WaitForCounts",
    "WaitForUnpromised",
    "WriteBurst",
    "WritePages",
    "WriteSlice",
    "WriteToClosedRegion",
    "YieldToLoop",
    "format_operations",
)

SIZES: Final = (8, 0, 1, 100, 4096, 640, 8193, 20000, 33, 8192, 2500, 140_001)
"""Chunk sizes in bytes, by number: around the packet, the page, and 128 KiB, above which a write is striped."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a schedule."""


@dataclass(frozen=True, slots=True)
class WriteSlice(Operation):
    """Engine ``by`` writes from offset ``at`` to a target of engine ``to``; it counts unless ``quiet`` is 3."""

    by: int
    to: int
    slot: int
    size: int
    at: int
    quiet: int


@dataclass(frozen=True, slots=True)
class WritePages(Operation):
    """Engine ``by`` writes ``count`` pages, shuffled on both sides; each counts once."""

    by: int
    to: int
    slot: int
    size: int
    count: int
    order: int


@dataclass(frozen=True, slots=True)
class ScatterSlices(Operation):
    """Engine ``by`` writes a slice to every other engine, or two."""

    by: int
    slot: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class NotifyPeer(Operation):
    """Engine ``by`` raises the counter of ``to`` by one."""

    by: int
    to: int


@dataclass(frozen=True, slots=True)
class WriteBurst(Operation):
    """Engine ``by`` submits ``count`` small writes at once; held completions are then reported at once, too."""

    by: int
    to: int
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class CancelledWrite(Operation):
    """Engine ``by`` writes to ``to`` in a scope that is cancelled before the first step."""

    by: int
    to: int
    slot: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class ReadSlice(Operation):
    """Engine ``by`` reads from offset ``at`` of engine ``of``'s source."""

    by: int
    of: int
    slot: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class WriteToClosedRegion(Operation):
    """Engine ``by`` writes with a descriptor of a region that its owner has closed."""

    by: int
    which: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class EnterBarrier(Operation):
    """Engine ``by`` enters the barrier of the group of all engines."""

    by: int


@dataclass(frozen=True, slots=True)
class SendMessage(Operation):
    """Engine ``by`` sends a message."""

    by: int
    to: int
    size: int


@dataclass(frozen=True, slots=True)
class ReceiveMessage(Operation):
    """Engine ``at`` begins to wait for a message."""

    at: int


@dataclass(frozen=True, slots=True)
class WaitForCounts(Operation):
    """Engine ``at`` begins to wait for some of the promised counts that no wait has asked for."""

    at: int
    count: int


@dataclass(frozen=True, slots=True)
class WaitForUnpromised(Operation):
    """Engine ``at`` begins to wait for more counts than are promised."""

    at: int
    more: int


@dataclass(frozen=True, slots=True)
class ReplaceCounter(Operation):
    """Engine ``at`` closes its counter, whatever is in flight, and opens another."""

    at: int


@dataclass(frozen=True, slots=True)
class CancelTask(Operation):
    """The ``which``-th waiting task is cancelled after ``turns``, or in the turn of the loop in which it would end.

    It is cancelled by its scope, or by ``Task.cancel`` where ``how`` is odd and the event loop is asyncio's.
    """

    which: int
    how: int
    turns: int


@dataclass(frozen=True, slots=True)
class YieldToLoop(Operation):
    """The event loop turns ``count`` times."""

    count: int


@dataclass(frozen=True, slots=True)
class CloseSourceRegion(Operation):
    """Engine ``of`` begins to close its source, and overwrites it once it is closed."""

    of: int


@dataclass(frozen=True, slots=True)
class CloseTargetRegion(Operation):
    """Engine ``of`` begins to close a target; once it is closed, no byte of it may change."""

    of: int
    slot: int


@dataclass(frozen=True, slots=True)
class ReopenRegions(Operation):
    """Engine ``of`` registers its closed arenas again."""

    of: int


@dataclass(frozen=True, slots=True)
class ConnectPeer(Operation):
    """Engine ``by`` connects to another, unless it is connected."""

    by: int
    to: int


@dataclass(frozen=True, slots=True)
class DisconnectPeer(Operation):
    """Engine ``by`` disconnects from another; the next transfer connects them again."""

    by: int
    to: int


@dataclass(frozen=True, slots=True)
class CloseEngine(Operation):
    """An engine closes, whatever is under way."""

    which: int


@dataclass(frozen=True, slots=True)
class KillEngine(Operation):
    """An engine is killed, as by ``kill -9``."""

    which: int


@dataclass(frozen=True, slots=True)
class CutPath(Operation):
    """Packets between two engines are held."""

    one: int
    other: int


@dataclass(frozen=True, slots=True)
class HealPath(Operation):
    """Packets between two engines pass again."""

    one: int
    other: int


@dataclass(frozen=True, slots=True)
class StallNics(Operation):
    """A NIC of an engine neither sends nor receives; with ``nic`` 0, none of its NICs does."""

    of: int
    nic: int


@dataclass(frozen=True, slots=True)
class ResumeNics(Operation):
    """All NICs of an engine work again."""

    of: int


@dataclass(frozen=True, slots=True)
class FailPosts(Operation):
    """The next posts of an engine fail."""

    of: int
    count: int


@dataclass(frozen=True, slots=True)
class FailCompletions(Operation):
    """The next pieces of an engine fail after half of their bytes."""

    of: int
    count: int


@dataclass(frozen=True, slots=True)
class FillQueues(Operation):
    """Every post of an engine finds its queue full."""

    of: int


@dataclass(frozen=True, slots=True)
class DrainQueues(Operation):
    """Posts of an engine find room again."""

    of: int


@dataclass(frozen=True, slots=True)
class HoldCompletions(Operation):
    """Completions of an engine are held back."""

    of: int


@dataclass(frozen=True, slots=True)
class ReleaseCompletions(Operation):
    """Completions that were held back are reported, all at once."""

    of: int


def format_operations(operations: Sequence[Operation] | Iterable[Operation]) -> str:
    """Return Python source of the same list, to be pasted into a test."""
    return "[\n" + "".join(f"    {operation!r},\n" for operation in operations) + "]"
