"""What the model of a random schedule knows: engines, what was submitted to them, and what may go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from aio_transfer.errors import AioTransferError, PeerLostError, ProviderError, StaleRegionError, TransferAbortedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.groups.group import PeerGroup
    from aio_transfer.testing.fuzz.model.arena import Arena, Chunk, Opened
    from aio_transfer.testing.fuzz.model.counter_model import Tally
    from aio_transfer.testing.fuzz.model.tasks import Await
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("Actor", "Part", "Trouble", "around", "blamed")

_Errors: TypeAlias = tuple[type[AioTransferError], ...]
_LINK: Final[_Errors] = (PeerLostError,)
_CLOSE: Final[_Errors] = (PeerLostError, TransferAbortedError)
_FAULT: Final[_Errors] = (ProviderError,)


@dataclass(slots=True, eq=False)
class Actor:
    """One engine of a schedule, and what the model knows of it.

    :ivar state: ``"open"``, ``"closing"`` (or closed), or ``"killed"``
    :ivar tally: its counter
    :ivar group: its member of the group of all engines
    :ivar entered: barriers it has entered
    :ivar passed: barriers it has left
    """

    engine: TransferEngine
    index: int
    nics: int
    source: Arena
    targets: tuple[Arena, ...]
    tally: Tally = field(init=False)
    state: Literal["open", "closing", "killed"] = "open"
    group: PeerGroup | None = None
    entered: int = 0
    passed: int = 0
    barrier: Await | None = None

    @property
    def name(self) -> str:
        """Its label."""
        return self.engine.address.label

    @property
    def names_sources(self) -> bool:
        """Whether its counter says who raises it: every other engine has both kinds of peers."""
        return self.index % 2 == 1

    @property
    def arenas(self) -> tuple[Arena, ...]:
        """All of its memory."""
        return self.source, *self.targets


@dataclass(slots=True, eq=False)
class Part:
    """What a transfer does with one peer.

    :ivar opened: the region at the peer's; ``None`` without a payload
    :ivar tally: the peer's counter that it is to raise, if any
    :ivar counts: by how much
    :ivar since: the step at which it was submitted
    :ivar is_stale: its descriptor was void by then
    :ivar posted: the step at which it was first seen to be posted, which is later where there was no connection yet
    :ivar until: the step at which it was first seen to have stopped
    """

    transfer: Transfer
    by: Actor
    to: Actor
    opened: Opened | None
    chunks: list[Chunk]
    tally: Tally | None
    counts: int
    since: int
    is_stale: bool
    posted: int | None = None
    until: int | None = None

    @property
    def moves(self) -> bool:
        """Whether there is anything to do: bytes, or a count."""
        return bool(self.transfer.nbytes or self.tally)

    def __str__(self) -> str:
        """Return what reports call it."""
        return f"{self.transfer.operation} {self.by.name}→{self.to.name} of step {self.since}"


@dataclass(slots=True, eq=False)
class Trouble:
    """Something that was done to engines, for which transfers and waits may fail.

    :ivar one: to which; ``other`` is ``None`` where all of its peers are concerned
    :ivar until: the step at which it was over; ``None`` while it goes on
    """

    kind: Literal["disconnect", "close", "kill", "fault"]
    one: Actor
    other: Actor | None
    since: int
    until: int | None = None

    def concerns(self, by: Actor, to: Actor) -> bool:
        """Whether it is between these two; a fault is of what ``by`` starts."""
        if self.other is not None:
            return {self.one, self.other} == {by, to}
        return self.one is by or (self.one is to and self.kind != "fault")

    @property
    def breaks_links(self) -> bool:
        """Whether connections end by it."""
        return self.kind != "fault"

    def excuses(self, by: Actor) -> _Errors:
        """Say which errors a transfer that ``by`` submitted may end with."""
        if self.kind == "fault":
            return _FAULT
        return _CLOSE if self.one is by and self.kind != "disconnect" else _LINK


def around(part: Part, troubles: Sequence[Trouble]) -> list[Trouble]:
    """Return what concerned a part while it was under way."""
    return [
        trouble
        for trouble in troubles
        if trouble.concerns(part.by, part.to)
        and (part.until is None or trouble.since <= part.until)
        # Who says goodbye knows when it is over; the other may have begun to connect again over what is ending.
        and (trouble.until is None or trouble.until >= part.since or trouble.other is part.by)
    ]


def blamed(part: Part, troubles: Sequence[Trouble]) -> set[type[AioTransferError]]:
    """Say which errors a part may have failed with; none if nothing happened that concerns it."""
    found: set[type[AioTransferError]] = set()
    for trouble in around(part, troubles):
        found.update(trouble.excuses(part.by))
    closing = None if part.opened is None else part.opened.closing
    if closing is not None and (part.until is None or closing <= part.until):
        found.add(StaleRegionError)
    return found
