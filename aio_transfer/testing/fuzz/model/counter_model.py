"""Model of a completion counter: the counts it may show, those it must show, and the queue of waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aio_transfer.regions.descriptor import CounterRef
from aio_transfer.testing.assertions import claim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.fuzz.model.arena import Chunk
    from aio_transfer.testing.fuzz.model.tasks import TrackedTask

__all__ = ("CounterModel", "QueuedWait")


@dataclass(slots=True, eq=False)
class QueuedWait:
    """A task that waits for counts; :attr:`CounterModel.waits` has them in the order of their queue."""

    count: int
    task: TrackedTask

    @property
    def is_queued(self) -> bool:
        """Whether it is still waiting."""
        return self.task.outcome == "waiting"


@dataclass(slots=True, eq=False)
class CounterModel:
    """A counter, and what the model knows of it.

    :ivar reference: names the counter in a peer's transfers
    :ivar promised: the sum of all counts that transfers may raise it by
    :ivar consumed: the counts that finished waits have taken
    :ivar closed: its owner has closed it, so counts that still arrive are dropped
    """

    engine: TransferEngine
    counter: ImmCounter
    reference: CounterRef = field(init=False)
    promised: int = 0
    consumed: int = 0
    closed: bool = False
    waits: list[QueuedWait] = field(default_factory=list)
    _checked: int = 0
    _unseen: list[Chunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Build the reference."""
        self.reference = CounterRef(self.engine.address, self.counter.id)

    @property
    def unclaimed(self) -> int:
        """Counts that are promised, and that no wait has asked for."""
        return max(0, self.promised - self.consumed - sum(wait.count for wait in self.waits if wait.is_queued))

    def promise(self, chunks: Sequence[Chunk], counts: int) -> None:
        """Add counts that may arrive: one per chunk, or some without a payload."""
        self.promised += counts
        self._unseen += chunks

    def check(self, when: str) -> None:
        """Check that it shows no more than was promised, no more than is visible, and no less than before."""
        value = self.counter.value
        if value == self._checked:
            return
        who = f"{when}: {value} counts at {self}"
        claim(value <= self.promised, f"{who}, and {self.promised} were promised (rule 3)")
        claim(value > self._checked, f"{who}, and {self._checked} before (rule 4)")
        self._unseen = [chunk for chunk in self._unseen if not chunk.is_visible]
        visible = self.promised - len(self._unseen)
        claim(value <= visible, f"{who}, and {visible} payloads are visible (rule 2)")
        self._checked = value

    def check_order(self, when: str) -> None:
        """Check that no wait was granted before one that was queued earlier."""
        queued = [index for index, wait in enumerate(self.waits) if wait.is_queued]
        # The first tasks that still wait may have been granted their counts, and not have run since.
        parked = self.counter.waiting
        if not parked or len(queued) < parked:
            return
        first = queued[-parked]
        passed = [wait for wait in self.waits[first:] if wait.task.outcome == "returned"]
        claim(not passed, f"{when}: {self.waits[first].task} still waits, and {passed and passed[0].task} (rule 5)")

    def __str__(self) -> str:
        """Return the label of its engine."""
        return self.engine.address.label
