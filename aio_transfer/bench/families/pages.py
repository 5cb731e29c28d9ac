"""Scattered pages of one region to scattered pages of another, many per submit."""

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

COUNT: Final = 4096
DEPTH: Final = 2
"""The next batch is planned while one is in flight."""


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure each page size, in a new pair of workers each: regions of large pages are large."""
    count = options.count or COUNT
    for nbytes in options.sizes_or(4 << 10, 64 << 10):
        async with start_workers(options, (1, 1)) as coordinator:
            target = await connect_source_to_target(coordinator, options, nbytes * count)
            workload = Workload(test="pages", options=options, provider=target.provider, nbytes=nbytes, count=count)
            yield await measure_bandwidth(coordinator, workload, depth=options.depth or DEPTH)
