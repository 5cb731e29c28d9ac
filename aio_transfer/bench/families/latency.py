"""The awaited round trip: a word written and counted each way, beside one byte-for-byte over a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.baselines import perftest
from aio_transfer.bench.baselines.native_rail import answer_rail, ask_rail, join_rail, offer_spinning_rail
from aio_transfer.bench.baselines.pipe import Port, dial_port, open_port, take_port
from aio_transfer.bench.report.result import times
from aio_transfer.bench.report.statistics import Pair, Sample, microseconds, percentile, rounds_for, spread
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.latency_steps import NBYTES, Rounds, ping, ping_pipe, pong, pong_pipe
from aio_transfer.bench.workers.worker_state import Nothing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import Team

__all__ = ("facing", "ours_beside_pipe", "run")

PAGE: Final = 4096
CALIBRATION_ROUNDS: Final = 100


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure round trips; half of one is ``one_way_us``."""
    async with team(options, (1, 1)) as both:
        provider = await facing(both, options)
        pairs = await ours_beside_pipe(both, options)
        one_way_us = percentile(microseconds(pair.ours for pair in pairs), 50) / 2
        more = await _beside_perftest(both, options) if perftest.is_possible(options) else {}
        yield times("latency", options, provider, pairs, nbytes=NBYTES, count=1, one_way_us=one_way_us, **more)


async def facing(both: Team, options: Options) -> str:
    """Let two processes offer each other memory, and connect; returns the provider."""
    offered = [await worker.offer(PAGE, foreign=options.foreign, seed=1) for worker in both.workers[:2]]
    await both[0].aim([offered[1]])
    await both[1].aim([offered[0]])
    if both.far:  # no pipe leads there
        port = await both[1].call(open_port, Port(both.far))
        await both[0].call(dial_port, port)
        await both[1].call(take_port, Nothing())
    return offered[0].provider


async def ours_beside_pipe(both: Team, options: Options) -> list[Pair]:
    """Measure alternating samples of round trips."""
    await both.alone(ping_pipe, Rounds(CALIBRATION_ROUNDS), pong_pipe)
    await both.alone(ping, Rounds(CALIBRATION_ROUNDS), pong)
    first = await both.alone(ping, Rounds(CALIBRATION_ROUNDS), pong)
    rounds = Rounds(rounds_for(options.sample_s, percentile(sorted(first.rounds_ns), 50)))
    pairs: list[Pair] = []
    for index in range(options.repeat):
        floor: Sample | None = None
        if index % 2:
            floor = (await both.alone(ping_pipe, rounds, pong_pipe)).sample()
        ours = (await both.alone(ping, rounds, pong)).sample()
        if floor is None:
            floor = (await both.alone(ping_pipe, rounds, pong_pipe)).sample()
        pairs.append(Pair(ours, floor))
    return pairs


async def _beside_perftest(both: Team, options: Options) -> dict[str, object]:
    """Measure half round trips without an event loop, beside those of ``ib_write_lat``, which has none; all spin."""
    port = await both[0].call(perftest.port, Nothing())
    await both.all(join_rail, (await both.all(offer_spinning_rail, [Nothing()] * 2))[::-1])
    first = await both.alone(ask_rail, Rounds(CALIBRATION_ROUNDS), answer_rail)
    # By the mean: where a processor is taken from one that spins, few rounds take most of the time.
    rounds = Rounds(rounds_for(options.sample_s, first.sample().round_ns))
    ours: list[float] = []
    theirs: list[float] = []
    for index in range(2 * options.repeat):
        if index % 4 in {1, 2}:  # in turns, and who begins changes
            ours.append(percentile(microseconds([(await both.alone(ask_rail, rounds, answer_rail)).sample()]), 50) / 2)
        else:
            theirs.append(await perftest.one_way_us(port, NBYTES, rounds.count))
    each = spread(one / other for one, other in zip(ours, theirs, strict=True))
    return {
        "native_one_way_us": spread(ours).median,
        "perftest_one_way_us": spread(theirs).median,
        "native_times_perftest": each.median,
        "native_times_perftest_min": each.least,
        "native_times_perftest_max": each.most,
    }
