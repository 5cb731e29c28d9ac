"""Schedules: lists of random operations, performed on a mesh of engines and checked against the model.

A seed determines a schedule: the engines, and the operations on them, one after the other, with the cancellations,
closed regions, cut paths and killed engines in between. The contract is checked after every operation and at the end.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import anyio

from aio_transfer.testing.assertions import ConformanceError, leaf_messages
from aio_transfer.testing.fuzz.generator import generate_schedule
from aio_transfer.testing.fuzz.mesh import SHAPES, Mesh, shape_of
from aio_transfer.testing.fuzz.model.world import World
from aio_transfer.testing.fuzz.operations import fault_ops, transfer_ops, wait_ops  # noqa: F401 - registers them
from aio_transfer.testing.fuzz.operations.definitions import EnterBarrier, format_operations
from aio_transfer.testing.fuzz.quiesce import quiesce
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aio_transfer.testing.fuzz.operations.definitions import Operation
    from aio_transfer.testing.spec import Spec

__all__ = (
    "ScheduleError",
    "batches",
    "perform_schedule",
    "run_batch",
    "run_operations",
    "run_schedule",
    "run_schedules",
)

_DEADLINE_S: Final = 30.0
_PER_MESH: Final = 128
_SEEDS_PER_BASE: Final = 1 << 20
_BASES: Final = 1 << 40


class ScheduleError(ConformanceError):
    """A schedule broke the contract.

    :ivar seed: repeats it, on engines of its own
    :ivar shape: NICs of each engine
    :ivar operations: the operations of the schedule
    :ivar seen: what was wrong
    :ivar schedule_number: how many schedules :func:`run_schedules` had run, this one included
    """

    def __init__(
        self, spec: object, seed: int, shape: Sequence[int], operations: Sequence[Operation], seen: str
    ) -> None:
        """Build a message that has what was seen, and how to repeat it."""
        self.schedule_number = 1
        self.seed = seed
        self.shape = tuple(shape)
        self.operations = tuple(operations)
        self.seen = seen
        source = format_operations(operations)
        super().__init__(f"schedule {seed} on {spec} with engines of {self.shape} NICs: {seen}\noperations = {source}")


async def perform_schedule(mesh: Mesh, operations: Sequence[Operation], seed: int) -> None:
    """Perform one schedule on an idle mesh, and leave the mesh idle.

    :param seed: of the fabric's adversary
    :raises Exception: the schedule failed; the mesh cannot be used any more
    """
    await mesh.begin_schedule(seed)
    if any(type(operation) is EnterBarrier for operation in operations):
        await mesh.form_group()
    async with anyio.create_task_group() as tasks:
        world = World(mesh, tasks)
        for operation in operations:
            await world.apply(operation)
        await quiesce(world)
        world.clear()
    await mesh.end_schedule()


async def _perform_checked(spec: Spec, mesh: Mesh, operations: Sequence[Operation], seed: int) -> None:
    """Perform one schedule, and wrap its errors.

    :raises ScheduleError: the schedule failed
    """
    try:
        with anyio.fail_after(patient(_DEADLINE_S)):
            await perform_schedule(mesh, operations, seed)
    except Exception as error:
        mesh.mark_failed()
        seen = "; ".join(leaf_messages(error))
        raise ScheduleError(spec, seed, mesh.shape, operations, seen) from error


async def run_operations(
    spec: Spec, operations: Sequence[Operation], *, shape: Sequence[int], seed: int = 0, deadline_s: float = 5.0
) -> None:
    """Perform a list of operations on engines of its own: once on new engines, and again on connected ones.

    :param shape: NICs of each engine
    :param seed: of the fabric's adversary
    :param deadline_s: time within which everything that has to end ends
    :raises ScheduleError: the contract was broken
    """
    try:
        async with Mesh(spec, shape, seed, deadline_s=deadline_s) as mesh:
            for _ in range(2):
                await _perform_checked(spec, mesh, operations, seed)
    except ScheduleError:
        raise
    except Exception as error:
        raise ScheduleError(spec, seed, shape, operations, "; ".join(leaf_messages(error))) from error


async def run_schedule(spec: Spec, seed: int) -> None:
    """Run one schedule, twice, on engines of its own.

    :raises ScheduleError: the contract was broken; the message has the seed and the operations
    """
    operations = generate_schedule(seed, fabric=spec.backend == "sim")
    await run_operations(spec, operations, shape=shape_of(seed), seed=seed)


async def run_schedules(spec: Spec, count: int) -> None:
    """Run ``count`` schedules, whose seeds follow from the spec's.

    :raises ScheduleError: as :func:`run_schedule`
    """
    done = 0
    for batch in batches(spec.seed, count):
        try:
            await run_batch(spec, batch)
        except ScheduleError as error:
            error.schedule_number += done
            raise
        done += len(batch)


def batches(seed: int, count: int, per_mesh: int = _PER_MESH) -> Iterator[list[int]]:
    """Split the seeds that follow from one into lists that share a mesh: see :func:`~.mesh.shape_of`."""
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
    spec: Spec, seeds: Sequence[int], on_performed: Callable[[Sequence[Operation]], object] = lambda _: None
) -> None:
    """Run schedules that share a mesh.

    :param on_performed: called with the operations of each schedule that succeeded
    :raises ScheduleError: one broke the contract; it was run again alone, and the message has the result
    """
    mesh = Mesh(spec, shape_of(seeds[0]), seeds[0])
    last = seeds[0]
    try:
        async with mesh:
            for last in seeds:
                operations = generate_schedule(last, fabric=mesh.fabric is not None)
                await _perform_checked(spec, mesh, operations, last)
                on_performed(operations)
    except Exception as error:  # noqa: BLE001 - a wrong backend may raise anything
        failed = error
    else:
        return
    raise await _repeat_alone(spec, last, mesh.schedule_number, failed) from failed


async def _repeat_alone(spec: Spec, seed: int, schedule_number: int, error: Exception) -> ScheduleError:
    """Repeat a schedule alone, and build the error with the result."""
    try:
        await run_schedule(spec, seed)
    except ScheduleError as repeated:
        alone = f"alone it fails too: {repeated.seen}"
    else:
        alone = f"alone it succeeds; it was schedule {schedule_number} of its mesh"
    seen = error.seen if isinstance(error, ScheduleError) else "; ".join(leaf_messages(error))
    operations = generate_schedule(seed, fabric=spec.backend == "sim")
    found = ScheduleError(spec, seed, shape_of(seed), operations, f"{seen} ({alone})")
    found.schedule_number = schedule_number
    return found
