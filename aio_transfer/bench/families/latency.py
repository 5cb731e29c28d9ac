"""Awaited round trip: one word written and counted each way, beside one word each way over a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.baselines import perftest
from aio_transfer.bench.baselines.native_endpoint import (
    connect_endpoint,
    open_spinning_endpoint,
    ping_native,
    pong_native,
)
from aio_transfer.bench.baselines.pipe import TcpEndpoint, accept_tcp, connect_tcp, listen_tcp
from aio_transfer.bench.report.result import Workload, latency_result
from aio_transfer.bench.report.statistics import Pair, Sample, iterations_for, microseconds, percentile, spread
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.latency_steps import WORD_NBYTES, Iterations, ping, ping_pipe, pong, pong_pipe
from aio_transfer.bench.workers.worker_state import Empty

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import Coordinator

__all__ = ("connect_both_ways", "run")

PAGE_NBYTES: Final = 4096
CALIBRATION_ITERATIONS: Final = 100


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure round trips; ``one_way_us`` is half of the median."""
    async with start_workers(options, (1, 1)) as coordinator:
        provider = await connect_both_ways(coordinator, options)
        pairs = await _measure_pairs(coordinator, options)
        one_way_us = percentile(microseconds(pair.engine for pair in pairs), 50) / 2
        more = await _compare_with_perftest(coordinator, options) if perftest.is_possible(options) else {}
        workload = Workload(test="latency", options=options, provider=provider, nbytes=WORD_NBYTES, count=1)
        yield latency_result(workload, pairs, one_way_us=one_way_us, **more)


async def connect_both_ways(coordinator: Coordinator, options: Options) -> str:
    """Allocate memory in the first two workers, and connect each to the other's; returns the provider."""
    memories = [
        await worker.allocate_memory(PAGE_NBYTES, foreign=options.foreign, seed=1) for worker in coordinator.workers[:2]
    ]
    await coordinator[0].connect([memories[1]])
    await coordinator[1].connect([memories[0]])
    if coordinator.remote_host:  # FIFOs do not reach another host
        endpoint = await coordinator[1].call(listen_tcp, TcpEndpoint(coordinator.remote_host))
        await coordinator[0].call(connect_tcp, endpoint)
        await coordinator[1].call(accept_tcp, Empty())
    return memories[0].provider


async def _measure_pairs(coordinator: Coordinator, options: Options) -> list[Pair]:
    """Measure alternating samples of round trips by the engine and over the pipe."""
    warm_up = Iterations(CALIBRATION_ITERATIONS)
    await coordinator.call_pair(ping_pipe, warm_up, pong_pipe)
    await coordinator.call_pair(ping, warm_up, pong)
    first = await coordinator.call_pair(ping, warm_up, pong)
    iterations = Iterations(iterations_for(options.sample_s, percentile(sorted(first.iterations_ns), 50)))
    pairs: list[Pair] = []
    for index in range(options.repeat):
        baseline: Sample | None = None
        if index % 2:
            baseline = (await coordinator.call_pair(ping_pipe, iterations, pong_pipe)).sample()
        engine = (await coordinator.call_pair(ping, iterations, pong)).sample()
        if baseline is None:
            baseline = (await coordinator.call_pair(ping_pipe, iterations, pong_pipe)).sample()
        pairs.append(Pair(engine, baseline))
    return pairs


async def _compare_with_perftest(coordinator: Coordinator, options: Options) -> dict[str, object]:
    """Compare one-way times of native endpoints with ``ib_write_lat``: no event loop in either, and all ends spin."""
    port = await coordinator[0].call(perftest.find_port, Empty())
    addresses = await coordinator.call_each(open_spinning_endpoint, [Empty()] * 2)
    await coordinator.call_each(connect_endpoint, addresses[::-1])
    first = await coordinator.call_pair(ping_native, Iterations(CALIBRATION_ITERATIONS), pong_native)
    # From the mean: where a spinning thread loses its core, few iterations take most of the time.
    iterations = Iterations(iterations_for(options.sample_s, first.sample().mean_ns))
    native_us: list[float] = []
    perftest_us: list[float] = []
    for index in range(2 * options.repeat):
        if index % 4 in {1, 2}:  # in turns; each begins every second pair
            timings = await coordinator.call_pair(ping_native, iterations, pong_native)
            native_us.append(percentile(microseconds([timings.sample()]), 50) / 2)
        else:
            perftest_us.append(await perftest.one_way_us(port, WORD_NBYTES, iterations.count))
    ratio = spread(one / other for one, other in zip(native_us, perftest_us, strict=True))
    return {
        "native_one_way_us": spread(native_us).median,
        "perftest_one_way_us": spread(perftest_us).median,
        "native_times_perftest": ratio.median,
        "native_times_perftest_min": ratio.minimum,
        "native_times_perftest_max": ratio.maximum,
    }
