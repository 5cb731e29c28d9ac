"""The barrier of some engines, each in a process of its own, beside one message between two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from aio_transfer import PeerGroup, RemoteRegion
from aio_transfer.bench.families.latency import facing
from aio_transfer.bench.report.result import times
from aio_transfer.bench.report.statistics import Pair, Sample, percentile, rounds_for
from aio_transfer.bench.workers.bandwidth_steps import Moved
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.latency_steps import NBYTES, Rounds, ping, pong
from aio_transfer.bench.workers.worker_state import Nothing, Offered, Place, cpu_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

ENGINES: Final = 8
CALIBRATION_ROUNDS: Final = 50


class Join(msgspec.Struct, frozen=True):
    """Make a group of the owners of this memory, and oneself."""

    members: list[Offered]


async def join(place: Place, ask: Join) -> Nothing:
    """Perform :class:`Join`."""
    peers = [RemoteRegion.from_bytes(member.blob) for member in ask.members]
    group = await place.engines[0].group(peers, name="bench")
    await group.barrier()
    place.kept["group"] = group
    place.kept["group pids"] = [member.pid for member in ask.members]
    return Nothing()


async def barriers(place: Place, ask: Rounds) -> Moved:
    """Pass some barriers, one after another."""
    from time import perf_counter_ns as now

    group: PeerGroup = place.kept["group"]
    pids: list[int] = place.kept["group pids"]
    rounds: list[int] = []
    before, begin = cpu_ns(pids), now()
    since = begin
    for _ in range(ask.count):
        await group.barrier()
        until = now()
        rounds.append(until - since)
        since = until
    return Moved(elapsed_ns=since - begin, rounds_ns=rounds, cpu_ns=cpu_ns(pids) - before)


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure barriers; the floor is half a round trip between the first two engines."""
    count = options.peers or ENGINES
    async with team(options, [1] * count) as all_of_them:
        provider = await facing(all_of_them, options)
        offered = [await worker.offer(NBYTES) for worker in all_of_them.workers]
        others = [Join([one for j, one in enumerate(offered) if j != i]) for i in range(count)]
        await all_of_them.all(join, others)

        async def passing(rounds: int) -> Sample:
            return (await all_of_them.all(barriers, [Rounds(rounds)] * count))[0].sample()

        async def one_way(rounds: int) -> Sample:
            trip = await all_of_them.alone(ping, Rounds(rounds), pong)
            return Sample(elapsed_ns=trip.elapsed_ns // 2, rounds_ns=[one // 2 for one in trip.rounds_ns])

        await one_way(CALIBRATION_ROUNDS)
        first = await passing(CALIBRATION_ROUNDS)
        rounds = rounds_for(options.sample_s, percentile(sorted(first.rounds_ns), 50))
        pairs = [Pair(await passing(rounds), await one_way(rounds)) for _ in range(options.repeat)]
        yield times("barrier", options, provider, pairs, nbytes=0, count=count, engines=count)
