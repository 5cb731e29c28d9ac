"""Bandwidth: alternating samples of the engine and of the raw loop, in the same pair of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.baselines.catalog import floor_for
from aio_transfer.bench.report.result import bandwidth
from aio_transfer.bench.report.statistics import Pair, microseconds, percentile, rounds_for, spread
from aio_transfer.bench.workers.bandwidth_steps import Check, Move, Moved, check, move

if TYPE_CHECKING:
    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import Team
    from aio_transfer.bench.workers.worker_state import Offered

__all__ = ("SEED", "measure", "source_and_target")

SEED: Final = 7
CALIBRATION_ROUNDS: Final = 3


async def source_and_target(both: Team, options: Options, nbytes: int) -> Offered:
    """Let the second worker offer memory, and the first fill as much of its own and connect; returns the target."""
    target = await both[1].offer(nbytes, foreign=options.foreign)
    await both[0].offer(nbytes, foreign=options.foreign, seed=SEED)
    await both[0].aim([target])
    return target


async def measure(team: Team, options: Options, test: str, ask: Move, provider: str) -> Result:
    """Measure one kind of batch, of which the second worker holds the target.

    First some rounds of ours alone, whose bytes and counts are verified: warm-up, calibration and proof in one.
    """
    first = await _ours(team, ask, CALIBRATION_ROUNDS)
    await team[1].call(check, Check(kind=ask.kind, nbytes=ask.nbytes, count=ask.count, seed=SEED))
    second = await _ours(team, ask, CALIBRATION_ROUNDS)
    rounds = rounds_for(options.sample_s, min(first.sample().round_ns, second.sample().round_ns))
    floor = await floor_for(team, options, ask)
    pairs: list[Pair] = []
    kept: list[Moved] = []
    for index in range(options.repeat):
        raw: Moved | None = None
        if floor is not None and index % 2:  # whoever comes second finds the caches as the other left them
            raw = await floor.move(_with(ask, rounds))
        ours = await _ours(team, ask, rounds)
        if floor is not None and raw is None:
            raw = await floor.move(_with(ask, rounds))
        kept.append(ours)
        pairs.append(Pair(ours.sample(), raw.sample() if raw is not None else None))
    submits = sorted(one / 1e3 for moved in kept for one in moved.submits_ns)
    more: dict[str, object] = {
        "depth": ask.depth,
        "rounds": rounds,
        "submit_p50_us": percentile(submits, 50),
        "loop_sleeps_per_batch": spread(moved.wakes / rounds for moved in kept).median,
    }
    floors = microseconds(pair.floor for pair in pairs if pair.floor is not None)
    if floor is not None:
        more["floor"] = floor.name
        more["floor_p50_us"] = percentile(floors, 50)
    return bandwidth(test, options, provider, pairs, nbytes=ask.nbytes, count=ask.count, **more)


async def _ours(team: Team, ask: Move, rounds: int) -> Moved:
    """Move through the engine, and see that every count came, and none too many."""
    moved = await team[0].call(move, _with(ask, rounds))
    if ask.kind == "scatter":
        for held in range(ask.count):
            await team[1].expect(rounds, held)
    else:
        await team[1].expect(rounds * ask.count)
    return moved


def _with(ask: Move, rounds: int) -> Move:
    return Move(kind=ask.kind, nbytes=ask.nbytes, count=ask.count, rounds=rounds, depth=ask.depth)
