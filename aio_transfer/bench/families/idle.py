"""What an engine costs that does nothing, with many peers connected. The peers are engines of one other process."""

from __future__ import annotations

import resource
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from aio_transfer.bench.report.result import Result, setting
from aio_transfer.bench.report.statistics import spread
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.worker_state import Place, cpu_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options

__all__ = ("run",)

PEERS: Final = 16
MIN_S: Final = 1.0
NBYTES: Final = 4096


class Rest(msgspec.Struct, frozen=True):
    """Do nothing for so long."""

    seconds: float


class Rested(msgspec.Struct, frozen=True):
    """What that cost.

    :param loop_sleeps: how often the event loop's thread went to sleep, but for the once that it was told to
    :param sleeps: the same for all threads
    """

    elapsed_ns: int
    cpu_ns: int
    loop_sleeps: int
    sleeps: int


async def rest(_: Place, ask: Rest) -> Rested:
    """Perform :class:`Rest`."""
    await anyio.sleep(ask.seconds / 10)  # whatever the connections began has ended
    begin, cpu = perf_counter_ns(), cpu_ns([])
    loop, everybody = _sleeps(resource.RUSAGE_THREAD), _sleeps(resource.RUSAGE_SELF)
    await anyio.sleep(ask.seconds)
    return Rested(
        elapsed_ns=perf_counter_ns() - begin,
        cpu_ns=cpu_ns([]) - cpu,
        loop_sleeps=max(0, _sleeps(resource.RUSAGE_THREAD) - loop - 1),
        sleeps=max(0, _sleeps(resource.RUSAGE_SELF) - everybody - 1),
    )


def _sleeps(whose: int) -> int:
    return resource.getrusage(whose).ru_nvcsw


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure CPU time and wake-ups of one engine."""
    peers = options.peers or PEERS
    async with team(options, (1, peers)) as both:
        targets = [await both[1].offer(NBYTES, engine=peer) for peer in range(peers)]
        await both[0].aim(targets)
        seconds = max(MIN_S, options.sample_s * 4)
        rested = [await both[0].call(rest, Rest(seconds)) for _ in range(options.repeat)]
    cpu = spread(one.cpu_ns / one.elapsed_ns * 100 for one in rested)
    yield Result(
        test="idle",
        backend=options.backend,
        provider=targets[0].provider,
        nbytes=0,
        count=0,
        more={
            **setting(options),
            "peers": peers,
            "cpu_percent": cpu.median,
            "cpu_percent_max": cpu.most,
            "loop_wakes_per_s": spread(one.loop_sleeps / one.elapsed_ns * 1e9 for one in rested).median,
            "wakes_per_s": spread(one.sleeps / one.elapsed_ns * 1e9 for one in rested).median,
            "samples": len(rested),
            "floor_reason": "doing nothing costs nothing",
        },
    )
