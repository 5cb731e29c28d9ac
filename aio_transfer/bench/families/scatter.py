"""One chunk to each of many peers: an expert-parallel dispatch. The peers are engines of one other process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.bandwidth import SEED, measure
from aio_transfer.bench.workers.bandwidth_steps import Move
from aio_transfer.bench.workers.coordinator import team

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

PEERS: Final = 16


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure each chunk size. ``submit_p50_us`` is the time from the submit to the last post."""
    peers = options.peers or PEERS
    for nbytes in options.sizes_or(256, 16 << 10):
        async with team(options, (1, peers)) as both:
            targets = [await both[1].offer(nbytes, engine=peer, foreign=options.foreign) for peer in range(peers)]
            await both[0].offer(nbytes * peers, foreign=options.foreign, seed=SEED)
            await both[0].aim(targets)
            ask = Move(kind="scatter", nbytes=nbytes, count=peers, depth=options.depth or 1)
            yield await measure(both, options, "scatter", ask, targets[0].provider)
