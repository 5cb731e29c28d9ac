"""Engines that serve many random schedules, one after the other: opening some costs as much as ten schedules."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from aio_transfer.testing.assertions import ConformanceError
from aio_transfer.testing.fixtures import level
from aio_transfer.testing.fuzz.model.arena import Arena
from aio_transfer.testing.fuzz.model.counter_model import Tally
from aio_transfer.testing.fuzz.model.engine_model import Actor
from aio_transfer.testing.leaks import leaked_since, open_resources
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.sim_fabric import SimFabric
    from aio_transfer.testing.spec import Spec

__all__ = ("SHAPES", "Mesh", "shape_of")

SHAPES: Final = (
    (1, 2),
    (1, 1, 3),
    (8, 2),
    (2, 1, 4),
    (1, 2, 3, 4),
    (1, 1),
    (3, 8, 1),
    (3, 1, 4, 2, 8),
    (2, 2, 1),
    (1, 8, 2, 3, 4, 1),
)
"""How many engines there are, and how many NICs each has where there can be any number."""
_LABELS: Final = "abcdef"
_MAX_PIECE_NBYTES: Final = 3000
"""Of a fabric, where the number of engines is odd: there all but small chunks travel in pieces."""
_CLOSE_DEADLINE_S: Final = 10.0
# A loaded machine may not answer for long, and nobody here falls silent. Closing on a path that is cut takes the grace.
_SETTINGS: Final = {"liveness_timeout_s": 20.0, "grace_s": 0.25}


def shape_of(seed: int) -> tuple[int, ...]:
    """Return the shape of a seed's mesh."""
    return SHAPES[seed % len(SHAPES)]


class Mesh:
    """Some engines, their memory, and nothing under way between schedules.

    :ivar fabric: what connects them, where it can be told what to do
    :ivar turn: how many schedules were begun
    :ivar tardy: messages of former schedules that may still come, as their sender was lost
    """

    def __init__(self, spec: Spec, shape: Sequence[int], seed: int = 0, *, deadline_s: float = 5.0) -> None:
        """Prepare it; the engines are opened by ``async with``.

        :param shape: NICs of each engine
        :param seed: of the fabric's adversary
        :param deadline_s: for whatever has to end
        """
        self.spec = spec
        self.shape = tuple(shape)
        max_piece_nbytes = _MAX_PIECE_NBYTES if len(shape) % 2 else 0
        self.fabric = _fabric(spec, seed, max_piece_nbytes)
        self.deadline_s = patient(deadline_s)
        self.actors: list[Actor] = []
        self.tardy: set[bytes] = set()
        self.groups = itertools.count()
        self._serial = itertools.count(1)
        self._numbers = itertools.count(1)
        self.turn = 0
        self._ruined = False

    async def __aenter__(self) -> Self:
        """Open all engines."""
        self._before = open_resources()
        try:
            for index in range(len(self.shape)):
                self.actors.append(await self._enlist(index))
        except BaseException:
            await self._abandon()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all, and after a good end demand that nothing is left.

        :raises ConformanceError: a native handle, a lease, a file descriptor or a thread is
        """
        if error is not None or self._ruined:
            await self._abandon()
            return
        try:
            await self._take_back()
        finally:
            await self._abandon()
        left = await leaked_since(self._before)
        if left:
            raise ConformanceError(f"left after every engine was closed: {', '.join(left)}")

    async def _enlist(self, index: int) -> Actor:
        serial = next(self._serial)
        label = f"{_LABELS[index]}{serial}"
        settings = _SETTINGS | {"label": label} | dict(self.spec.settings)
        if self.fabric is None:
            engine = self.spec.engine(**settings)
        else:
            engine = self.fabric.engine(nics=self.shape[index], **settings)
        await engine.__aenter__()
        arenas = [Arena(engine, 3 * serial + part) for part in range(3)]
        actor = Actor(engine, index, self.shape[index], arenas[0], (arenas[1], arenas[2]))
        try:
            for arena in arenas:
                await arena.open()
        except BaseException:
            await engine.aclose()
            raise
        return actor

    # ------------------------------------------------------------------------------------------------------ schedules

    async def restart(self, seed: int) -> None:
        """Begin a schedule: every counter new, every memory open, every engine there.

        :param seed: of the fabric's adversary
        """
        self.turn += 1
        if self.fabric is not None:
            self.fabric.reseed(seed)
        for actor in self.actors:
            for arena in actor.arenas:
                arena.restart()
            actor.tally = self.tally(actor)

    def tally(self, actor: Actor) -> Tally:
        """Make a counter: of each kind there is, on one engine or the other."""
        others = [other.engine.address for other in self.actors if other is not actor]
        # Each well-known id but once: what still came for its last use would count for the next.
        number = next(self._numbers) if actor.index % 3 == 2 else None  # noqa: PLR2004
        return Tally(actor.engine, actor.engine.counter(number, sources=others if actor.names_sources else ()))

    async def restore(self) -> None:
        """End a schedule: put others in the place of engines that are gone, and open what is closed."""
        for actor in tuple(self.actors):
            if actor.state != "open":
                for arena in actor.arenas:
                    arena.drop()
                self.actors[actor.index] = await self._enlist(actor.index)
                continue
            actor.tally.counter.close()
            for arena in actor.arenas:
                if not arena.is_open:
                    await arena.open()

    async def regroup(self) -> None:
        """Make the group of all engines, unless there is one that works."""
        if all(actor.group is not None for actor in self.actors):
            return
        name = f"group {next(self.groups)}"
        for actor in self.actors:
            others = [other.engine.address for other in self.actors if other is not actor]
            actor.group = await actor.engine.group(others, name=name)
            actor.entered = actor.passed = 0

    def ungroup(self) -> None:
        """Let every member leave the group."""
        for actor in self.actors:
            if actor.group is not None:
                actor.group.close()
                actor.group = None

    # -------------------------------------------------------------------------------------------------------- closing

    def ruin(self) -> None:
        """Take note that a schedule failed: nothing can be expected of these engines."""
        self._ruined = True

    async def _take_back(self) -> None:
        self.ungroup()
        for actor in self.actors:
            for arena in actor.arenas:
                arena.verify("when the mesh was closed")
                await arena.opened.region.aclose()
        await level([actor.engine for actor in self.actors])

    async def _abandon(self) -> None:
        engines: list[TransferEngine] = [actor.engine for actor in self.actors]
        for actor in self.actors:
            for arena in actor.arenas:
                arena.drop()
        self.actors.clear()
        with anyio.CancelScope(shield=True), anyio.move_on_after(patient(_CLOSE_DEADLINE_S)):
            async with anyio.create_task_group() as tasks:
                for engine in engines:
                    tasks.start_soon(_close, engine)


async def _close(engine: TransferEngine) -> None:
    with contextlib.suppress(Exception):  # what matters was found before, or is found by what is left
        await engine.aclose()


def _fabric(spec: Spec, seed: int, max_piece_nbytes: int) -> SimFabric | None:
    if spec.backend != "sim":
        return None
    from aio_transfer.testing.sim_fabric import SimFabric

    options: dict[str, Any] = {"max_piece": max_piece_nbytes} | dict(spec.options)
    return SimFabric(seed=seed, **options)
