"""One contiguous write after another, from 4 KiB to 256 MiB."""

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

DEPTH: Final = 8
"""Enough that the next write is there when one ends; more only queues."""


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure each size, in one pair of processes for all."""
    sizes = options.sizes_or(4 << 10, 256 << 20)
    async with team(options, (1, 1)) as both:
        target = await source_and_target(both, options, max(sizes))
        for nbytes in sizes:
            ask = Move(kind="write", nbytes=nbytes, count=1, depth=options.depth or DEPTH)
            yield await measure(both, options, "write", ask, target.provider)
