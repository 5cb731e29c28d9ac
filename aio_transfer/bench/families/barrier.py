"""Barrier of several engines, each in a process of its own, beside one message between two of them."""

from __future__ import annotations

from time import perf_counter_ns as now
from typing import TYPE_CHECKING, Final

import msgspec

from aio_transfer import PeerGroup, RemoteRegion
from aio_transfer.bench.families.latency import connect_both_ways
from aio_transfer.bench.report.result import Workload, latency_result
from aio_transfer.bench.report.statistics import Pair, Sample, iterations_for, percentile
from aio_transfer.bench.workers.bandwidth_steps import Timings
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.latency_steps import WORD_NBYTES, Iterations, ping, pong
from aio_transfer.bench.workers.worker_state import AllocatedMemory, Empty, WorkerState, cpu_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import Coordinator

__all__ = ("run",)

ENGINES: Final = 8
CALIBRATION_ITERATIONS: Final = 50


class JoinGroup(msgspec.Struct, frozen=True):
    """Request to make a group with the owners of this memory."""

    members: list[AllocatedMemory]


async def join_group(state: WorkerState, request: JoinGroup) -> Empty:
    """Perform :class:`JoinGroup`."""
    peers = [RemoteRegion.from_bytes(member.descriptor) for member in request.members]
    group = await state.engines[0].group(peers, name="bench")
    await group.barrier()
    state.resources["group"] = group
    state.resources["group pids"] = [member.pid for member in request.members]
    return Empty()


async def pass_barriers(state: WorkerState, request: Iterations) -> Timings:
    """Pass some barriers, one after another."""
    group: PeerGroup = state.resources["group"]
    pids: list[int] = state.resources["group pids"]
    iterations: list[int] = []
    cpu_before, begin = cpu_ns(pids), now()
    since = begin
    for _ in range(request.count):
        await group.barrier()
        until = now()
        iterations.append(until - since)
        since = until
    return Timings(elapsed_ns=since - begin, iterations_ns=iterations, cpu_ns=cpu_ns(pids) - cpu_before)


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure barriers; the baseline is half a round trip between the first two engines."""
    count = options.peers or ENGINES
    async with start_workers(options, [1] * count) as coordinator:
        provider = await connect_both_ways(coordinator, options)
        memories = [await worker.allocate_memory(WORD_NBYTES) for worker in coordinator.workers]
        others = [JoinGroup([memory for j, memory in enumerate(memories) if j != i]) for i in range(count)]
        await coordinator.call_each(join_group, others)
        await _one_way(coordinator, CALIBRATION_ITERATIONS)
        first = await _barriers(coordinator, CALIBRATION_ITERATIONS)
        iterations = iterations_for(options.sample_s, percentile(sorted(first.iterations_ns), 50))
        pairs = [
            Pair(await _barriers(coordinator, iterations), await _one_way(coordinator, iterations))
            for _ in range(options.repeat)
        ]
        workload = Workload(test="barrier", options=options, provider=provider, count=count)
        yield latency_result(workload, pairs, engines=count)


async def _barriers(coordinator: Coordinator, iterations: int) -> Sample:
    """Measure barriers of all workers, in the first one."""
    timings = await coordinator.call_each(pass_barriers, [Iterations(iterations)] * len(coordinator.workers))
    return timings[0].sample()


async def _one_way(coordinator: Coordinator, iterations: int) -> Sample:
    """Measure half round trips between the first two workers."""
    trips = await coordinator.call_pair(ping, Iterations(iterations), pong)
    return Sample(elapsed_ns=trips.elapsed_ns // 2, iterations_ns=[one // 2 for one in trips.iterations_ns])
