"""Models of a schedule's engines, of what was submitted to them, and of disruptions that may fail it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from aio_transfer.errors import AioTransferError, PeerLostError, ProviderError, StaleRegionError, TransferAbortedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.groups.group import PeerGroup
    from aio_transfer.testing.fuzz.model.arena import Arena, Chunk, Registration
    from aio_transfer.testing.fuzz.model.counter_model import CounterModel
    from aio_transfer.testing.fuzz.model.tasks import TrackedTask
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("Disruption", "EngineModel", "TransferPart", "allowed_errors", "overlapping_disruptions")

_ErrorTypes: TypeAlias = tuple[type[AioTransferError], ...]
_LINK: Final[_ErrorTypes] = (PeerLostError,)
_CLOSE: Final[_ErrorTypes] = (PeerLostError, TransferAbortedError)
_FAULT: Final[_ErrorTypes] = (ProviderError,)


@dataclass(slots=True, eq=False)
class EngineModel:
    """One engine of a schedule, a node of the mesh, and what the model knows of it.

    :ivar state: ``"open"``, ``"closing"`` (or closed), or ``"killed"``
    :ivar counter_model: its counter
    :ivar group: its member of the group of all engines
    :ivar entered: how many barriers it has entered
    :ivar passed: how many barriers it has left
    """

    engine: TransferEngine
    index: int
    nics: int
    source: Arena
    targets: tuple[Arena, ...]
    counter_model: CounterModel = field(init=False)
    state: Literal["open", "closing", "killed"] = "open"
    group: PeerGroup | None = None
    entered: int = 0
    passed: int = 0
    barrier: TrackedTask | None = None

    @property
    def name(self) -> str:
        """Its label."""
        return self.engine.address.label

    @property
    def names_sources(self) -> bool:
        """Whether its counter names its sources: every second engine does, so that each has both kinds of peers."""
        return self.index % 2 == 1

    @property
    def arenas(self) -> tuple[Arena, ...]:
        """All of its memory."""
        return self.source, *self.targets


@dataclass(slots=True, eq=False)
class TransferPart:
    """The part of a transfer that concerns one peer; only a scatter has several.

    :ivar registration: the region at the peer's; ``None`` without a payload
    :ivar counts: by how much it may raise the peer's counter
    :ivar submitted: the step at which it was submitted
    :ivar counter_model: the peer's counter of that step, if it is to be raised
    :ivar is_stale: the registration was closed before that step
    :ivar posted: the step at which it was first seen to be posted, which is later where there was no connection yet
    :ivar stopped: the step at which it was first seen to have stopped
    """

    transfer: Transfer
    by: EngineModel
    to: EngineModel
    registration: Registration | None
    chunks: list[Chunk]
    counts: int
    submitted: int = field(init=False, default=0)
    counter_model: CounterModel | None = field(init=False)
    is_stale: bool = field(init=False)
    posted: int | None = None
    stopped: int | None = None

    def __post_init__(self) -> None:
        """Note what the peer has at this step; both may be replaced later."""
        self.counter_model = self.to.counter_model if self.counts else None
        self.is_stale = self.registration is not None and self.registration.closed is not None

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do: bytes, or a count."""
        return bool(self.transfer.nbytes or self.counter_model)

    def __str__(self) -> str:
        """Return its name in reports."""
        return f"{self.transfer.operation} {self.by.name}→{self.to.name} of step {self.submitted}"


@dataclass(slots=True, eq=False)
class Disruption:
    """Something done to engines for which transfers and waits may fail.

    :ivar one: the engine it was done to; ``other`` is ``None`` where it affects all of its peers
    :ivar began: the step at which it began
    :ivar ended: the step at which it was over; ``None`` while it goes on
    """

    kind: Literal["disconnect", "close", "kill", "fault"]
    one: EngineModel
    other: EngineModel | None
    began: int
    ended: int | None = None

    def affects(self, by: EngineModel, to: EngineModel) -> bool:
        """Whether it is between these two; a fault affects what ``by`` submits."""
        if self.other is not None:
            return {self.one, self.other} == {by, to}
        return self.one is by or (self.one is to and self.kind != "fault")

    @property
    def breaks_links(self) -> bool:
        """Whether it ends connections."""
        return self.kind != "fault"

    def allowed_errors(self, by: EngineModel) -> _ErrorTypes:
        """Return the errors that a transfer submitted by ``by`` may end with."""
        if self.kind == "fault":
            return _FAULT
        return _CLOSE if self.one is by and self.kind != "disconnect" else _LINK


def overlapping_disruptions(part: TransferPart, disruptions: Sequence[Disruption]) -> list[Disruption]:
    """Return the disruptions that affected a part while it was under way."""
    return [
        disruption
        for disruption in disruptions
        if disruption.affects(part.by, part.to)
        and (part.stopped is None or disruption.began <= part.stopped)
        # The side that disconnects knows when that is over; the other may have begun to connect again before.
        and (disruption.ended is None or disruption.ended >= part.submitted or disruption.other is part.by)
    ]


def allowed_errors(part: TransferPart, disruptions: Sequence[Disruption]) -> set[type[AioTransferError]]:
    """Return the errors that a part may have failed with; none if no disruption affected it."""
    found: set[type[AioTransferError]] = set()
    for disruption in overlapping_disruptions(part, disruptions):
        found.update(disruption.allowed_errors(part.by))
    closing = None if part.registration is None else part.registration.closing
    if closing is not None and (part.stopped is None or closing <= part.stopped):
        found.add(StaleRegionError)
    return found
