"""Scattered pages of one region to scattered pages of another, many per submit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.bandwidth import measure, source_and_target
from aio_transfer.bench.workers.bandwidth_steps import Move
from aio_transfer.bench.workers.coordinator import team

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

COUNT: Final = 4096
DEPTH: Final = 2
"""The next batch is planned while one moves."""


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure each page size, in a pair of processes of its own: regions of the larger ones are large."""
    count = options.count or COUNT
    for nbytes in options.sizes_or(4 << 10, 64 << 10):
        async with team(options, (1, 1)) as both:
            target = await source_and_target(both, options, nbytes * count)
            ask = Move(kind="pages", nbytes=nbytes, count=count, depth=options.depth or DEPTH)
            yield await measure(both, options, "pages", ask, target.provider)
