"""Contiguous writes, one after another, from 4 KiB to 256 MiB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.bandwidth import connect_source_to_target, measure_bandwidth
from aio_transfer.bench.report.result import Workload
from aio_transfer.bench.workers.coordinator import start_workers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

DEPTH: Final = 8
"""Enough that a next write is always queued; more only lengthens the queue."""


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure each size, all in one pair of workers."""
    sizes = options.sizes_or(4 << 10, 256 << 20)
    async with start_workers(options, (1, 1)) as coordinator:
        target = await connect_source_to_target(coordinator, options, max(sizes))
        for nbytes in sizes:
            workload = Workload(test="write", options=options, provider=target.provider, nbytes=nbytes, count=1)
            yield await measure_bandwidth(coordinator, workload, depth=options.depth or DEPTH)
