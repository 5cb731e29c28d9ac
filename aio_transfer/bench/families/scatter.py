"""Scatter of one chunk to each of many peers, as in an expert-parallel dispatch. One process has all peers' engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.bandwidth import SEED, measure_bandwidth
from aio_transfer.bench.report.result import Workload
from aio_transfer.bench.workers.coordinator import start_workers

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
        async with start_workers(options, (1, peers)) as coordinator:
            targets = [
                await coordinator[1].allocate_memory(nbytes, engine=peer, foreign=options.foreign)
                for peer in range(peers)
            ]
            await coordinator[0].allocate_memory(nbytes * peers, foreign=options.foreign, seed=SEED)
            await coordinator[0].connect(targets)
            workload = Workload(
                test="scatter", options=options, provider=targets[0].provider, nbytes=nbytes, count=peers
            )
            yield await measure_bandwidth(coordinator, workload, depth=options.depth or 1)
