"""From a schedule that fails to the shortest part of it that still does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aio_transfer.testing.fuzz.generator import draw
from aio_transfer.testing.fuzz.mesh import shape_of
from aio_transfer.testing.fuzz.operations.definitions import show
from aio_transfer.testing.fuzz.schedule import ScheduleError, run_moves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aio_transfer.testing.fuzz.operations.definitions import Move
    from aio_transfer.testing.spec import Spec

__all__ = ("Shrunk", "ddmin", "shrink")

_DEADLINE_S: Final = 1.5
_REPEATS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """What is left of a failing schedule.

    :ivar seen: how it fails now
    :ivar runs: how many schedules were played to find it
    """

    spec: Spec
    seed: int
    shape: tuple[int, ...]
    moves: tuple[Move, ...]
    seen: str
    runs: int

    def __str__(self) -> str:
        """Return Python to be pasted into a test."""
        return (
            f"# {self.seen}\nfrom aio_transfer.testing.fuzz.operations.definitions import *\n\n"
            f"moves = {show(self.moves)}\n"
            f"await run_moves(spec, moves, shape={self.shape}, seed={self.seed})"
        )


async def shrink(
    spec: Spec,
    seed: int,
    moves: Sequence[Move] | None = None,
    *,
    shape: Sequence[int] | None = None,
    repeats: int = _REPEATS,
) -> Shrunk | None:
    """Find a short list of moves that fails, each time on engines of its own.

    :param seed: the schedule's, and the fabric's adversary's
    :param moves: by default those of the seed
    :param shape: NICs of each engine; by default those of the seed
    :param repeats: how often a list may run well before it is taken to be good: a real network is no simulated one
    :returns: ``None`` if all of them together do not fail
    """
    nics = tuple(shape_of(seed) if shape is None else shape)
    seen: dict[tuple[Move, ...], str] = {}
    runs = 0

    async def fails(some: tuple[Move, ...]) -> bool:
        nonlocal runs
        for _ in range(repeats):
            runs += 1
            try:
                await run_moves(spec, some, shape=nics, seed=seed, deadline_s=_DEADLINE_S)
            except ScheduleError as error:
                seen[some] = error.seen
                return True
        return False

    all_of_them = tuple(draw(seed, fabric=spec.backend == "sim") if moves is None else moves)
    if not await fails(all_of_them):
        return None
    least = await ddmin(all_of_them, fails)
    return Shrunk(spec=spec, seed=seed, shape=nics, moves=least, seen=seen[least], runs=runs)


async def ddmin(moves: tuple[Move, ...], fails: Callable[[tuple[Move, ...]], Awaitable[bool]]) -> tuple[Move, ...]:
    """Leave out what is not needed, in ever smaller parts, until every single move is.

    :param moves: they fail
    :source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002
    """
    parts = 2
    while len(moves) > 1:
        size = -(-len(moves) // parts)
        for begin in range(0, len(moves), size):
            rest = moves[:begin] + moves[begin + size :]
            if await fails(rest):
                moves, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(moves), 2 * parts)
    return moves
