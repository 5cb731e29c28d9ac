"""One completion counter of a random schedule: what it may show, what it must, and who waits for it."""

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
    from aio_transfer.testing.fuzz.model.tasks import Await

__all__ = ("Tally", "Waiting")


@dataclass(slots=True, eq=False)
class Waiting:
    """A task that waits for counts, in the order in which they queue."""

    count: int
    task: Await

    @property
    def is_queued(self) -> bool:
        """Whether it still waits."""
        return self.task.outcome == "waiting"


@dataclass(slots=True, eq=False)
class Tally:
    """A counter, and what the model knows of it.

    :ivar reference: by which others raise it
    :ivar promised: counts that transfers may raise it by
    :ivar consumed: counts that waits have taken
    :ivar closed: its owner has closed it: what still comes is dropped
    """

    engine: TransferEngine
    counter: ImmCounter
    reference: CounterRef = field(init=False)
    promised: int = 0
    consumed: int = 0
    closed: bool = False
    waits: list[Waiting] = field(default_factory=list)
    _checked: int = 0
    _unseen: list[Chunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Name it as peers do."""
        self.reference = CounterRef(self.engine.address, self.counter.id)

    @property
    def unclaimed(self) -> int:
        """Counts that are promised, and that nobody has waited for."""
        return max(0, self.promised - self.consumed - sum(wait.count for wait in self.waits if wait.is_queued))

    def promise(self, chunks: Sequence[Chunk], counts: int) -> None:
        """Note counts that may come: one per chunk, or some without a payload."""
        self.promised += counts
        self._unseen += chunks

    def check(self, when: str) -> None:
        """Demand that it shows no more than was promised, no more than is visible, and no less than before."""
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
        """Demand that no wait was granted before one that queues for longer."""
        queued = [index for index, wait in enumerate(self.waits) if wait.is_queued]
        # Of those whose task still waits, the first may have been granted and not have run yet.
        parked = self.counter.waiting
        if not parked or len(queued) < parked:
            return
        first = queued[-parked]
        passed = [wait for wait in self.waits[first:] if wait.task.outcome == "returned"]
        claim(not passed, f"{when}: {self.waits[first].task} still waits, and {passed and passed[0].task} (rule 5)")

    def __str__(self) -> str:
        """Return whose it is."""
        return self.engine.address.label
