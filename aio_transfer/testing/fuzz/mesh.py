"""Mesh of engines that serves many schedules in turn: opening the engines takes as long as ten schedules."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from aio_transfer.testing.assertions import ConformanceError
from aio_transfer.testing.fixtures import verify_nothing_left
from aio_transfer.testing.fuzz.model.arena import Arena
from aio_transfer.testing.fuzz.model.counter_model import CounterModel
from aio_transfer.testing.fuzz.model.engine_model import EngineModel
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
"""The number of NICs of each engine, where the backend allows any number."""
_LABELS: Final = "abcdef"
_MAX_PIECE_NBYTES: Final = 3000
"""Where the number of engines is odd, the fabric splits larger chunks into pieces."""
_CLOSE_DEADLINE_S: Final = 10.0
# A loaded machine may answer late, and no peer here is silent. Closing over a path that is cut takes the whole grace.
_WELL_KNOWN: Final = 2
"""Every third engine opens its counters by well-known ids: those whose index has this remainder."""
_SETTINGS: Final = {"liveness_timeout_s": 20.0, "grace_s": 0.25}


def shape_of(seed: int) -> tuple[int, ...]:
    """Return the shape of a seed's mesh."""
    return SHAPES[seed % len(SHAPES)]


class Mesh:
    """Engines and their memory, with nothing in flight between schedules.

    :ivar fabric: the simulated fabric that connects them, if any
    :ivar schedule_number: how many schedules were begun
    :ivar late_messages: messages of former schedules that may still arrive, as their sender was lost
    """

    def __init__(self, spec: Spec, shape: Sequence[int], seed: int = 0, *, deadline_s: float = 5.0) -> None:
        """Prepare the mesh; ``async with`` opens the engines.

        :param shape: NICs of each engine
        :param seed: of the fabric's adversary
        :param deadline_s: time within which everything that has to end ends
        """
        self.spec = spec
        self.shape = tuple(shape)
        max_piece_nbytes = _MAX_PIECE_NBYTES if len(shape) % 2 else 0
        self.fabric = _fabric(spec, seed, max_piece_nbytes)
        self.deadline_s = patient(deadline_s)
        self.nodes: list[EngineModel] = []
        self.late_messages: set[bytes] = set()
        self._group_numbers = itertools.count()
        self._serials = itertools.count(1)
        self._counter_ids = itertools.count(1)
        self.schedule_number = 0
        self._failed = False

    async def __aenter__(self) -> Self:
        """Open all engines."""
        self._before = open_resources()
        try:
            for index in range(len(self.shape)):
                self.nodes.append(await self._open_engine(index))
        except BaseException:
            await self._close_all()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all engines; after a successful schedule, check that nothing is left open.

        :raises ConformanceError: a native handle, a lease, a file descriptor or a thread is left
        """
        if error is not None or self._failed:
            await self._close_all()
            return
        try:
            await self._verify_closed()
        finally:
            await self._close_all()
        left = await leaked_since(self._before)
        if left:
            raise ConformanceError(f"left after every engine was closed: {', '.join(left)}")

    async def _open_engine(self, index: int) -> EngineModel:
        serial = next(self._serials)
        label = f"{_LABELS[index]}{serial}"
        settings = _SETTINGS | {"label": label} | dict(self.spec.settings)
        if self.fabric is None:
            engine = self.spec.engine(**settings)
        else:
            engine = self.fabric.engine(nics=self.shape[index], **settings)
        await engine.__aenter__()
        arenas = [Arena(engine, 3 * serial + part) for part in range(3)]
        node = EngineModel(engine, index, self.shape[index], arenas[0], (arenas[1], arenas[2]))
        try:
            for arena in arenas:
                await arena.open()
        except BaseException:
            await engine.aclose()
            raise
        return node

    # ------------------------------------------------------------------------------------------------------ schedules

    async def begin_schedule(self, seed: int) -> None:
        """Begin a schedule: every counter is new, every arena registered, every engine open.

        :param seed: of the fabric's adversary
        """
        self.schedule_number += 1
        if self.fabric is not None:
            self.fabric.reseed(seed)
        for node in self.nodes:
            for arena in node.arenas:
                arena.begin_schedule()
            node.counter_model = self.open_counter(node)

    def open_counter(self, node: EngineModel) -> CounterModel:
        """Open a counter; its kind depends on the engine, so that every kind is in use."""
        others = [other.engine.address for other in self.nodes if other is not node]
        # Each well-known id is used once: counts that arrive late for one use would count for the next.
        number = next(self._counter_ids) if node.index % 3 == _WELL_KNOWN else None
        return CounterModel(node.engine, node.engine.counter(number, sources=others if node.names_sources else ()))

    async def end_schedule(self) -> None:
        """End a schedule: replace engines that are closed, and register closed arenas again."""
        for node in tuple(self.nodes):
            if node.state != "open":
                for arena in node.arenas:
                    arena.release_memory()
                self.nodes[node.index] = await self._open_engine(node.index)
                continue
            node.counter_model.counter.close()
            for arena in node.arenas:
                if not arena.is_open:
                    await arena.open()

    async def form_group(self) -> None:
        """Form the group of all engines, unless there is one that works."""
        if all(node.group is not None for node in self.nodes):
            return
        name = f"group {next(self._group_numbers)}"
        for node in self.nodes:
            others = [other.engine.address for other in self.nodes if other is not node]
            node.group = await node.engine.group(others, name=name)
            node.entered = node.passed = 0

    def leave_group(self) -> None:
        """Let every engine leave the group."""
        for node in self.nodes:
            if node.group is not None:
                node.group.close()
                node.group = None

    # -------------------------------------------------------------------------------------------------------- closing

    def mark_failed(self) -> None:
        """Note that a schedule failed, so that the engines are closed without further checks."""
        self._failed = True

    async def _verify_closed(self) -> None:
        self.leave_group()
        for node in self.nodes:
            for arena in node.arenas:
                arena.verify("when the mesh was closed")
                await arena.registration.region.aclose()
        await verify_nothing_left([node.engine for node in self.nodes])

    async def _close_all(self) -> None:
        engines: list[TransferEngine] = [node.engine for node in self.nodes]
        for node in self.nodes:
            for arena in node.arenas:
                arena.release_memory()
        self.nodes.clear()
        with anyio.CancelScope(shield=True), anyio.move_on_after(patient(_CLOSE_DEADLINE_S)):
            async with anyio.create_task_group() as tasks:
                for engine in engines:
                    tasks.start_soon(_close, engine)


async def _close(engine: TransferEngine) -> None:
    with contextlib.suppress(Exception):  # errors were found before; leaks are found by what is left open
        await engine.aclose()


def _fabric(spec: Spec, seed: int, max_piece_nbytes: int) -> SimFabric | None:
    if spec.backend != "sim":
        return None
    from aio_transfer.testing.sim_fabric import SimFabric

    options: dict[str, Any] = {"max_piece": max_piece_nbytes} | dict(spec.options)
    return SimFabric(seed=seed, **options)
