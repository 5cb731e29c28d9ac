"""Cost of an idle engine with many connected peers. One process has all peers' engines."""

from __future__ import annotations

import resource
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from aio_transfer.bench.report.result import Workload
from aio_transfer.bench.report.statistics import spread
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.worker_state import WorkerState, cpu_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

PEERS: Final = 16
MIN_S: Final = 1.0
NBYTES: Final = 4096


class StayIdle(msgspec.Struct, frozen=True):
    """Request to do nothing for some time."""

    seconds: float


class IdleCost(msgspec.Struct, frozen=True):
    """Cost of that time.

    :param loop_sleeps: how often the event loop's thread blocked, without the one time for this step itself
    :param sleeps: the same for all threads
    """

    elapsed_ns: int
    cpu_ns: int
    loop_sleeps: int
    sleeps: int


async def stay_idle(_state: WorkerState, request: StayIdle) -> IdleCost:
    """Perform :class:`StayIdle`."""
    await anyio.sleep(request.seconds / 10)  # until the setup of the connections is over
    begin, cpu_before = perf_counter_ns(), cpu_ns([])
    loop_before, process_before = _sleeps(resource.RUSAGE_THREAD), _sleeps(resource.RUSAGE_SELF)
    await anyio.sleep(request.seconds)
    return IdleCost(
        elapsed_ns=perf_counter_ns() - begin,
        cpu_ns=cpu_ns([]) - cpu_before,
        loop_sleeps=max(0, _sleeps(resource.RUSAGE_THREAD) - loop_before - 1),
        sleeps=max(0, _sleeps(resource.RUSAGE_SELF) - process_before - 1),
    )


def _sleeps(who: int) -> int:
    return resource.getrusage(who).ru_nvcsw


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure CPU time and wake-ups of one engine."""
    peers = options.peers or PEERS
    async with start_workers(options, (1, peers)) as coordinator:
        targets = [await coordinator[1].allocate_memory(NBYTES, engine=peer) for peer in range(peers)]
        await coordinator[0].connect(targets)
        request = StayIdle(max(MIN_S, options.sample_s * 4))
        costs = [await coordinator[0].call(stay_idle, request) for _ in range(options.repeat)]
    cpu = spread(cost.cpu_ns / cost.elapsed_ns * 100 for cost in costs)
    yield Workload(test="idle", options=options, provider=targets[0].provider).result(
        {
            "peers": peers,
            "cpu_percent": cpu.median,
            "cpu_percent_max": cpu.maximum,
            "loop_wakes_per_s": spread(cost.loop_sleeps / cost.elapsed_ns * 1e9 for cost in costs).median,
            "wakes_per_s": spread(cost.sleeps / cost.elapsed_ns * 1e9 for cost in costs).median,
            "samples": len(costs),
            "baseline_reason": "doing nothing costs nothing",
        }
    )
