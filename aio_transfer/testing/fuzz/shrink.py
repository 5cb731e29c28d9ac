"""Shrinking: finds the shortest part of a failing schedule that still fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aio_transfer.testing.fuzz.generator import generate_schedule
from aio_transfer.testing.fuzz.mesh import shape_of
from aio_transfer.testing.fuzz.operations.definitions import format_operations
from aio_transfer.testing.fuzz.schedule import ScheduleError, run_operations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aio_transfer.testing.fuzz.operations.definitions import Operation
    from aio_transfer.testing.spec import Spec

__all__ = ("ShrunkSchedule", "ddmin", "shrink")

_DEADLINE_S: Final = 1.5
_REPEATS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrunkSchedule:
    """The shortest part of a failing schedule.

    :ivar seen: how it fails
    :ivar runs: how many schedules were run to find it
    """

    spec: Spec
    seed: int
    shape: tuple[int, ...]
    operations: tuple[Operation, ...]
    seen: str
    runs: int

    def __str__(self) -> str:
        """Return Python to be pasted into a test."""
        return (
            f"# {self.seen}\nfrom aio_transfer.testing.fuzz.operations.definitions import *\n\n"
            f"operations = {format_operations(self.operations)}\n"
            f"await run_operations(spec, operations, shape={self.shape}, seed={self.seed})"
        )


async def shrink(
    spec: Spec,
    seed: int,
    operations: Sequence[Operation] | None = None,
    *,
    shape: Sequence[int] | None = None,
    repeats: int = _REPEATS,
) -> ShrunkSchedule | None:
    """Find a short list of operations that fails, with new engines for each attempt.

    :param seed: the schedule's, and the fabric's adversary's
    :param operations: by default those of the seed
    :param shape: NICs of each engine; by default those of the seed
    :param repeats: how often a list has to succeed before it counts as not failing: real networks do not repeat
    :returns: ``None`` if the whole list does not fail
    """
    nics = tuple(shape_of(seed) if shape is None else shape)
    seen: dict[tuple[Operation, ...], str] = {}
    runs = 0

    async def fails(some: tuple[Operation, ...]) -> bool:
        nonlocal runs
        for _ in range(repeats):
            runs += 1
            try:
                await run_operations(spec, some, shape=nics, seed=seed, deadline_s=_DEADLINE_S)
            except ScheduleError as error:
                seen[some] = error.seen
                return True
        return False

    all_of_them = tuple(generate_schedule(seed, fabric=spec.backend == "sim") if operations is None else operations)
    if not await fails(all_of_them):
        return None
    least = await ddmin(all_of_them, fails)
    return ShrunkSchedule(spec=spec, seed=seed, shape=nics, operations=least, seen=seen[least], runs=runs)


async def ddmin(
    operations: tuple[Operation, ...], fails: Callable[[tuple[Operation, ...]], Awaitable[bool]]
) -> tuple[Operation, ...]:
    """Remove operations that are not needed for the failure, in ever smaller parts, until each is needed.

    :param operations: a list that fails
    :source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002
    """
    parts = 2
    while len(operations) > 1:
        size = -(-len(operations) // parts)
        for begin in range(0, len(operations), size):
            rest = operations[:begin] + operations[begin + size :]
            if await fails(rest):
                operations, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(operations), 2 * parts)
    return operations
