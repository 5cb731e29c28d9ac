"""Pages in flight while the sender's event loop computes: the native threads must move them without the loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from aio_transfer.bench.families.bandwidth import SEED, connect_source_to_target
from aio_transfer.bench.report.result import Workload
from aio_transfer.bench.report.statistics import spread
from aio_transfer.bench.workers.bandwidth_steps import VerifyBytes, chunk_order, verify_bytes
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.worker_state import AwaitCounts, WorkerState, await_counts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import Coordinator

__all__ = ("run",)

PAGE_NBYTES: Final = 64 << 10
COUNT: Final = 2048
BATCHES: Final = 8
"""Of 128 MiB each: 1 GiB is in flight when the event loop begins to compute."""
BUSY_FACTOR: Final = 1.5
"""The event loop computes for that many times the duration of the transfers."""


class SubmitAndCompute(msgspec.Struct, frozen=True):
    """Request to submit all batches at once, and to compute before any is awaited.

    :param seconds: duration of the computation; 0 to await at once
    """

    nbytes: int
    count: int
    batches: int
    seconds: float


class Timestamp(msgspec.Struct, frozen=True):
    """Time of ``CLOCK_MONOTONIC``, which both processes share."""

    monotonic_ns: int


async def submit_and_compute(state: WorkerState, request: SubmitAndCompute) -> Timestamp:
    """Perform :class:`SubmitAndCompute`; returns the time of the first submit."""
    engine, region, remote = state.engines[0], state.memories[0].region, state.remotes[0]
    sources, targets = chunk_order(request.count, "source"), chunk_order(request.count, "target")
    since = time.monotonic_ns()
    in_flight = [
        engine.submit_write_pages(region.pages(sources, request.nbytes), remote.pages(targets, request.nbytes))
        for _ in range(request.batches)
    ]
    until = since + request.seconds * 1e9
    while time.monotonic_ns() < until:
        pass
    for transfer in in_flight:
        await transfer
    return Timestamp(since)


async def await_arrival(state: WorkerState, request: AwaitCounts) -> Timestamp:
    """Wait for all counts; returns the time of the last."""
    await await_counts(state, request)
    return Timestamp(time.monotonic_ns())


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure with an event loop that computes; the baseline is the same with one that waits."""
    nbytes, count = options.sizes[0] if options.sizes else PAGE_NBYTES, options.count or COUNT
    waiting = SubmitAndCompute(nbytes, count, BATCHES, 0)
    waiting_ns, computing_ns = [], []
    async with start_workers(options, (1, 1)) as coordinator:
        target = await connect_source_to_target(coordinator, options, nbytes * count)
        await _measure_ns(coordinator, waiting)
        await coordinator[1].call(verify_bytes, VerifyBytes(kind="pages", nbytes=nbytes, count=count, seed=SEED))
        for _ in range(options.repeat):
            waiting_ns.append(await _measure_ns(coordinator, waiting))
            computing = SubmitAndCompute(nbytes, count, BATCHES, BUSY_FACTOR * waiting_ns[-1] / 1e9)
            computing_ns.append(await _measure_ns(coordinator, computing))
    moved = nbytes * count * BATCHES
    ratio = spread(one / other for one, other in zip(waiting_ns, computing_ns, strict=True))
    workload = Workload(
        test="busy-loop", options=options, provider=target.provider, nbytes=nbytes, count=count * BATCHES
    )
    yield workload.result(
        {"ratio_min": ratio.minimum, "ratio_max": ratio.maximum, "samples": len(computing_ns)},
        gb_per_s=spread(moved / elapsed for elapsed in computing_ns).median,
        baseline_gb_per_s=spread(moved / elapsed for elapsed in waiting_ns).median,
        ratio=ratio.median,
    )


async def _measure_ns(coordinator: Coordinator, request: SubmitAndCompute) -> int:
    """Return the time from the first submit to the last count, in nanoseconds."""
    arrivals: list[Timestamp] = []

    async def receive() -> None:
        counts = AwaitCounts(counts=request.count * request.batches)
        arrivals.append(await coordinator[1].call(await_arrival, counts))

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        since = await coordinator[0].call(submit_and_compute, request)
    return arrivals[0].monotonic_ns - since.monotonic_ns
