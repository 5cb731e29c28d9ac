"""A random schedule while it is played: who is there, what was started, and what must hold after every move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

import anyio.lowlevel

from aio_transfer.errors import ProviderError, StaleRegionError
from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fuzz.model.engine_model import Part, Trouble
from aio_transfer.testing.fuzz.model.tasks import Await

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from aio_transfer.testing.fuzz.mesh import Mesh
    from aio_transfer.testing.fuzz.model.arena import Chunk, Opened
    from aio_transfer.testing.fuzz.model.counter_model import Tally
    from aio_transfer.testing.fuzz.model.engine_model import Actor
    from aio_transfer.testing.fuzz.operations.definitions import Move
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("Letter", "Model", "play")


@singledispatch
async def play(move: Move, model: Model) -> None:
    """Make a move; what depends on its kind is registered by the modules of moves."""
    raise NotImplementedError(f"{move!r} on {model!r}")


@dataclass(slots=True, eq=False)
class Letter:
    """A message that was sent; no two are alike."""

    by: Actor
    to: Actor
    task: Await
    since: int
    received: bool = False


class Model:
    """One schedule on a mesh.

    :ivar clock: how many moves were made
    :ivar parts: everything that was submitted
    :ivar awaits: everything that was awaited
    :ivar troubles: what was done that may fail others
    :ivar spoiled: something happened that may break the group's barriers
    :ivar retired: regions whose owner has closed them
    :ivar deadline_s: after it, a wait that should have ended has not: rule 8
    :ivar tallies: counters, also those that were closed
    :ivar armed: how many failures the fabric was told to make
    """

    def __init__(self, mesh: Mesh, tasks: TaskGroup) -> None:
        """Begin a schedule.

        :param tasks: whatever is awaited runs here
        """
        self.mesh = mesh
        self.fabric = mesh.fabric
        self.actors = tuple(mesh.actors)
        self.deadline_s = mesh.deadline_s
        self.clock = 0
        self.parts: list[Part] = []
        self.awaits: list[Await] = []
        self.troubles: list[Trouble] = []
        self.tallies: list[Tally] = [actor.tally for actor in mesh.actors]
        self.receives: list[tuple[Actor, Await]] = []
        self.letters: dict[bytes, Letter] = {}
        self.retired: list[tuple[Actor, Opened]] = []
        self.spoiled = False
        self.armed = 0
        self._tasks = tasks

    async def apply(self, move: Move) -> None:
        """Make one move, and check what must hold after it.

        :raises ConformanceError: it does not
        """
        self.clock += 1
        await play(move, self)
        await anyio.lowlevel.checkpoint()
        self.check(f"after step {self.clock}, {type(move).__name__}")

    def forget(self) -> None:
        """Undo the cycles in what is known: garbage of a hundred schedules takes as long to collect as ten take."""
        for known in (self.parts, self.awaits, self.tallies, self.receives, self.letters, self.retired, self.troubles):
            known.clear()

    def check(self, when: str) -> None:
        """Demand what holds at every moment."""
        for part in self.parts:
            if part.posted is None and part.transfer.path is not None:
                part.posted = self.clock
            if part.until is None and part.transfer.done:
                self._stopped(part)
        for actor in self.actors:
            if actor.state == "open":
                actor.tally.check(when)
                if len(actor.tally.waits) > 1:
                    actor.tally.check_order(when)
                for arena in actor.arenas:
                    arena.check_leases(when)

    def _stopped(self, part: Part) -> None:
        """Take note that a transfer is over: an error comes only once nothing of it moves (rule 6).

        It is the first of all, and others may have followed: pieces on a link that broke can land until the fence.
        """
        part.until = self.clock
        told = isinstance(part.transfer.exception(), ProviderError | StaleRegionError)
        if told and not self.link_was_broken(part.by, part.to):
            for chunk in part.chunks:
                chunk.settle(str(part))

    # ---------------------------------------------------------------------------------------------------------- picks

    def open_actors(self) -> list[Actor]:
        """Return the engines that can be used."""
        return [actor for actor in self.actors if actor.state == "open"]

    def pick(self, index: int) -> Actor | None:
        """Return the engine that a number means now."""
        there = self.open_actors()
        return there[index % len(there)] if there else None

    def pick_two(self, by: int, to: int) -> tuple[Actor, Actor] | None:
        """Return two different engines, the first of which can be used; the other may be on its way out."""
        one = self.pick(by)
        if one is None:
            return None
        others = [actor for actor in self.actors if actor is not one and actor.state != "killed"]
        return (one, others[to % len(others)]) if others else None

    # ---------------------------------------------------------------------------------------------------------- notes

    def start(
        self,
        what: str,
        call: Callable[[], Awaitable[object]],
        on_return: Callable[[], object] = lambda: None,
    ) -> Await:
        """Await something in a task of its own."""
        one = Await(f"{what} of step {self.clock}", call, on_return).start(self._tasks)
        self.awaits.append(one)
        return one

    def submitted(  # noqa: PLR0913, PLR0917 - one thing
        self, transfer: Transfer, by: Actor, to: Actor, opened: Opened | None, chunks: Sequence[Chunk], counts: int
    ) -> None:
        """Note what a transfer is to do at one peer.

        :param counts: by how much it may raise the peer's counter
        """
        stale = opened is not None and opened.closed is not None
        tally = to.tally if counts else None
        self.parts.append(Part(transfer, by, to, opened, list(chunks), tally, counts, self.clock, stale))
        if tally is not None:
            tally.promise(chunks, counts)

    def trouble(self, trouble: Trouble) -> Trouble:
        """Note that something was done to engines."""
        self.troubles.append(trouble)
        self.spoiled = True
        return trouble

    def parted(self, trouble: Trouble) -> None:
        """Note that a goodbye is over: whatever the other had sent before has landed here, or never will (rule 8)."""
        trouble.until = self.clock
        if self.fabric is None:  # a real one may need longer than the grace, and then only a region's end is certain
            return
        for part in self.parts:
            # The path of a scatter is that of any of its parts: this one may be posted only when they connect again.
            posted = part.posted is not None and part.posted < trouble.since and part.transfer.operation != "scatter"
            if posted and part.to is trouble.one and part.by is trouble.other:
                for chunk in part.chunks:
                    if chunk.arena.engine is part.to.engine:
                        chunk.settle(str(part))

    def link_was_broken(self, one: Actor, other: Actor) -> bool:
        """Whether a connection between two engines may have ended in this schedule."""
        return any(trouble.breaks_links and trouble.concerns(one, other) for trouble in self.troubles)

    def was_broken(self, actor: Actor) -> bool:
        """Whether any connection of an engine may have."""
        return any(self.link_was_broken(actor, other) for other in self.actors if other is not actor)

    def retire(self, actor: Actor, opened: Opened) -> None:
        """Take note that a region is closed: from now on nothing of a peer's may land in it."""
        claim(opened.region.leases == 0, f"{opened.region.name} was closed with {opened.region.leases} leases out")
        opened.closed = self.clock
        self.retired.append((actor, opened))
        for part in self.parts:
            for chunk in part.chunks:
                if part.opened is opened and chunk.arena is opened.arena:
                    chunk.settle(str(part))
