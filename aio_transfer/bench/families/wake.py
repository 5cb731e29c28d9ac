"""Wake-up of a sleeping event loop: by a counter, beside a pipe and an eventfd of a native thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.latency import connect_both_ways
from aio_transfer.bench.report.result import Workload, latency_result
from aio_transfer.bench.report.statistics import Pair, microseconds, percentile
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.latency_steps import (
    MESSAGE_INTERVAL_S,
    WORD_NBYTES,
    Iterations,
    await_eventfd,
    await_pipe_timestamps,
    await_timestamps,
    send_pipe_timestamps,
    send_timestamps,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

MIN_ITERATIONS: Final = 20


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure from the submit call in one process to the end of the counter's await in the other.

    Both event loops sleep before each message. The baseline, an eventfd within one process, has no submit and no second
    interpreter. The pipe between the same two processes (``pipe_p50_us``) has a system call in place of the submit.
    """
    warm_up = Iterations(MIN_ITERATIONS)
    iterations = Iterations(max(MIN_ITERATIONS, int(options.sample_s / MESSAGE_INTERVAL_S)))
    async with start_workers(options, (1, 1)) as coordinator:
        provider = await connect_both_ways(coordinator, options)
        await coordinator.call_pair(await_timestamps, warm_up, send_timestamps)
        await coordinator.call_pair(await_pipe_timestamps, warm_up, send_pipe_timestamps)
        pairs: list[Pair] = []
        pipes = []
        for _ in range(options.repeat):
            eventfd = await coordinator[0].call(await_eventfd, iterations)
            engine = await coordinator.call_pair(await_timestamps, iterations, send_timestamps)
            pipe = await coordinator.call_pair(await_pipe_timestamps, iterations, send_pipe_timestamps)
            pipes.append(pipe.sample())
            pairs.append(Pair(engine.sample(), eventfd.sample()))
        workload = Workload(test="wake", options=options, provider=provider, nbytes=WORD_NBYTES, count=1)
        yield latency_result(workload, pairs, pipe_p50_us=percentile(microseconds(pipes), 50))
