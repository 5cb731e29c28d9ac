"""Choice of the bandwidth baseline per backend, and how it runs between two workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aio_transfer.bench.baselines import perftest
from aio_transfer.bench.baselines.native_endpoint import (
    connect_endpoint,
    open_endpoint,
    start_progress,
    stop_progress,
    write_batches,
)
from aio_transfer.bench.workers.bandwidth_steps import MoveBatches, Timings, copy_batches
from aio_transfer.bench.workers.worker_state import Empty

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.workers.coordinator import Coordinator

__all__ = ("Baseline", "prepare_baseline")


class Baseline(NamedTuple):
    """A baseline that is ready to run.

    :ivar name: as shown in results
    """

    name: str
    move: Callable[[MoveBatches], Awaitable[Timings]]


async def prepare_baseline(coordinator: Coordinator, options: Options, request: MoveBatches) -> Baseline | None:
    """Return the baseline of a backend, run once for its page faults and connection; ``None`` if it has none."""
    if options.backend == "shm":

        async def copy(request: MoveBatches) -> Timings:
            return await coordinator[0].call(copy_batches, request)

        await copy(request)
        return Baseline("copy", copy)
    if request.kind == "write" and perftest.is_possible(options):
        return await _perftest(coordinator)
    if options.backend in {"libfabric", "tcp", "verbs"} and request.kind != "scatter":
        return await _native_endpoints(coordinator, request)
    return None


async def _perftest(coordinator: Coordinator) -> Baseline:
    port = await coordinator[0].call(perftest.find_port, Empty())

    async def write(request: MoveBatches) -> Timings:
        write_ns = round(await perftest.seconds_per_write(port, request.nbytes, request.iterations) * 1e9)
        iterations_ns = [write_ns] * request.iterations  # perftest prints only the mean
        return Timings(elapsed_ns=sum(iterations_ns), iterations_ns=iterations_ns, cpu_ns=0)

    return Baseline("ib_write_bw", write)


async def _native_endpoints(coordinator: Coordinator, request: MoveBatches) -> Baseline:
    addresses = await coordinator.call_each(open_endpoint, [Empty()] * 2)

    async def write(request: MoveBatches) -> Timings:
        await coordinator[1].call(start_progress, Empty())
        timings = await coordinator[0].call(write_batches, request)
        await coordinator[1].call(stop_progress, Empty())
        return timings

    await coordinator.call_each(connect_endpoint, addresses[::-1])
    await write(request)
    return Baseline("raw loop", write)
