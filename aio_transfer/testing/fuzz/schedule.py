"""Random interleavings of everything, against a model of bytes and counts.

A schedule is a seed: it says how many engines there are and what they do, one move after the other, with what is
cancelled, closed, cut and killed in between. After every move, and at the end, what the contract promises is compared
with what is there.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import anyio

from aio_transfer.testing.assertions import ConformanceError, leaf_messages
from aio_transfer.testing.fuzz.generator import draw
from aio_transfer.testing.fuzz.mesh import SHAPES, Mesh, shape_of
from aio_transfer.testing.fuzz.model.world import Model
from aio_transfer.testing.fuzz.operations import fault_ops, transfer_ops, wait_ops  # noqa: F401 - they register what their moves do
from aio_transfer.testing.fuzz.operations.definitions import Enter, show
from aio_transfer.testing.fuzz.quiesce import settle
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aio_transfer.testing.fuzz.operations.definitions import Move
    from aio_transfer.testing.spec import Spec

__all__ = ("ScheduleError", "batches", "play_schedule", "run_batch", "run_moves", "run_schedule", "run_schedules")

_DEADLINE_S: Final = 30.0
_PER_MESH: Final = 128
_SEEDS_PER_BASE: Final = 1 << 20
_BASES: Final = 1 << 40


class ScheduleError(ConformanceError):
    """A schedule broke the contract.

    :ivar seed: repeats it, on engines of its own
    :ivar shape: NICs of each engine
    :ivar moves: what was done
    :ivar seen: what was wrong
    :ivar turn: of :func:`run_schedules`, how many schedules had run, with this one
    """

    def __init__(self, spec: object, seed: int, shape: Sequence[int], moves: Sequence[Move], seen: str) -> None:
        """Say what was seen, and how to repeat it."""
        self.turn = 1
        self.seed = seed
        self.shape = tuple(shape)
        self.moves = tuple(moves)
        self.seen = seen
        super().__init__(f"schedule {seed} on {spec} with engines of {self.shape} NICs: {seen}\nmoves = {show(moves)}")


async def play_schedule(mesh: Mesh, moves: Sequence[Move], seed: int) -> None:
    """Play one schedule on a mesh that is at rest, and leave it at rest.

    :param seed: of the fabric's adversary
    :raises Exception: whatever went wrong; the mesh is of no further use
    """
    await mesh.restart(seed)
    if any(type(move) is Enter for move in moves):
        await mesh.regroup()
    async with anyio.create_task_group() as tasks:
        model = Model(mesh, tasks)
        for move in moves:
            await model.apply(move)
        await settle(model)
        model.forget()
    await mesh.restore()


async def _attempt(spec: Spec, mesh: Mesh, moves: Sequence[Move], seed: int) -> None:
    """Play one, and wrap what goes wrong.

    :raises ScheduleError: something did
    """
    try:
        with anyio.fail_after(patient(_DEADLINE_S)):
            await play_schedule(mesh, moves, seed)
    except Exception as error:
        mesh.ruin()
        seen = "; ".join(leaf_messages(error))
        raise ScheduleError(spec, seed, mesh.shape, moves, seen) from error


async def run_moves(
    spec: Spec, moves: Sequence[Move], *, shape: Sequence[int], seed: int = 0, deadline_s: float = 5.0
) -> None:
    """Play a list of moves on engines of its own: once when these are new, and again when they know each other.

    :param shape: NICs of each engine
    :param seed: of the fabric's adversary
    :param deadline_s: for whatever has to end
    :raises ScheduleError: the contract was broken
    """
    try:
        async with Mesh(spec, shape, seed, deadline_s=deadline_s) as mesh:
            for _ in range(2):
                await _attempt(spec, mesh, moves, seed)
    except ScheduleError:
        raise
    except Exception as error:
        raise ScheduleError(spec, seed, shape, moves, "; ".join(leaf_messages(error))) from error


async def run_schedule(spec: Spec, seed: int) -> None:
    """Run one schedule, twice, on engines of its own.

    :raises ScheduleError: the contract was broken; the message has the seed and the moves
    """
    moves = draw(seed, fabric=spec.backend == "sim")
    await run_moves(spec, moves, shape=shape_of(seed), seed=seed)


async def run_schedules(spec: Spec, count: int) -> None:
    """Run ``count`` schedules, whose seeds follow from the spec's.

    :raises ScheduleError: as :func:`run_schedule`
    """
    done = 0
    for batch in batches(spec.seed, count):
        try:
            await run_batch(spec, batch)
        except ScheduleError as error:
            error.turn += done
            raise
        done += len(batch)


def batches(seed: int, count: int, per_mesh: int = _PER_MESH) -> Iterator[list[int]]:
    """Cut the seeds that follow from one into lists, each of which shares a mesh: see :func:`~.meshes.shape_of`."""
    first = (seed % _BASES) * _SEEDS_PER_BASE
    first -= first % len(SHAPES)
    size = min(per_mesh, max(1, count // len(SHAPES)))
    done = 0
    for index in itertools.count():
        begin, shape = index // len(SHAPES) * size, index % len(SHAPES)
        if done >= count:
            return
        seeds = [first + (begin + one) * len(SHAPES) + shape for one in range(min(size, count - done))]
        done += len(seeds)
        yield seeds


async def run_batch(
    spec: Spec, seeds: Sequence[int], played: Callable[[Sequence[Move]], object] = lambda _: None
) -> None:
    """Run schedules that share a mesh.

    :param played: told what each of them did
    :raises ScheduleError: one broke the contract; it was run again alone, and the message says how that went
    """
    mesh = Mesh(spec, shape_of(seeds[0]), seeds[0])
    last = seeds[0]
    try:
        async with mesh:
            for last in seeds:
                moves = draw(last, fabric=mesh.fabric is not None)
                await _attempt(spec, mesh, moves, last)
                played(moves)
    except Exception as error:  # noqa: BLE001 - whatever it is, a wrong backend may raise it
        failed = error
    else:
        return
    raise await _again(spec, last, mesh.turn, failed) from failed


async def _again(spec: Spec, seed: int, turn: int, error: Exception) -> ScheduleError:
    """Repeat a schedule alone, and say what came of it."""
    try:
        await run_schedule(spec, seed)
    except ScheduleError as again:
        how = f"alone it fails too: {again.seen}"
    else:
        how = f"alone it runs well; it was schedule {turn} of its mesh"
    seen = error.seen if isinstance(error, ScheduleError) else "; ".join(leaf_messages(error))
    moves = draw(seed, fabric=spec.backend == "sim")
    found = ScheduleError(spec, seed, shape_of(seed), moves, f"{seen} ({how})")
    found.turn = turn
    return found
