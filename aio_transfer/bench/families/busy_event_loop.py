"""What becomes of pages under way while their sender's event loop computes: the native thread shall not need it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from aio_transfer.bench.families.bandwidth import SEED, source_and_target
from aio_transfer.bench.report.result import Result, setting
from aio_transfer.bench.report.statistics import spread
from aio_transfer.bench.workers.bandwidth_steps import Check, check, chunks
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.worker_state import Expect, Place, expect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.workers.coordinator import Team

__all__ = ("run",)

PAGE: Final = 64 << 10
COUNT: Final = 2048
BATCHES: Final = 8
"""Of 128 MiB each: 1 GiB is under way when the loop begins to compute."""


class Begin(msgspec.Struct, frozen=True):
    """Submit so many batches at once, and compute for so long before anything is awaited.

    :param seconds: 0 to await at once
    """

    nbytes: int
    count: int
    batches: int
    seconds: float


class At(msgspec.Struct, frozen=True):
    """When that was, by the clock that both processes share."""

    monotonic_ns: int


async def begin(place: Place, ask: Begin) -> At:
    """Perform :class:`Begin`."""
    engine, region, remote = place.engines[0], place.held[0].region, place.remotes[0]
    ours, theirs = chunks(ask.count, "source"), chunks(ask.count, "target")
    since = time.monotonic_ns()
    under_way = [
        engine.submit_write_pages(region.pages(ours, ask.nbytes), remote.pages(theirs, ask.nbytes))
        for _ in range(ask.batches)
    ]
    until = since + ask.seconds * 1e9
    while time.monotonic_ns() < until:
        pass
    for transfer in under_way:
        await transfer
    return At(since)


async def arrive(place: Place, ask: Expect) -> At:
    """Wait for all of it, and say when the last of it was there."""
    await expect(place, ask)
    return At(time.monotonic_ns())


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure; the floor is the same with a loop that waits."""
    nbytes, count = options.sizes[0] if options.sizes else PAGE, options.count or COUNT
    moved = nbytes * count * BATCHES
    async with team(options, (1, 1)) as both:
        target = await source_and_target(both, options, nbytes * count)
        await _once(both, Begin(nbytes, count, BATCHES, 0))
        await both[1].call(check, Check(kind="pages", nbytes=nbytes, count=count, seed=SEED))
        calm, busy = [], []
        for _ in range(options.repeat):
            calm.append(await _once(both, Begin(nbytes, count, BATCHES, 0)))
            busy.append(await _once(both, Begin(nbytes, count, BATCHES, 1.5 * calm[-1] / 1e9)))
    ours, floor = spread(moved / took for took in busy), spread(moved / took for took in calm)
    ratio = spread(one / other for one, other in zip(calm, busy, strict=True))
    yield Result(
        test="busy",
        backend=options.backend,
        provider=target.provider,
        nbytes=nbytes,
        count=count * BATCHES,
        gb_per_s=ours.median,
        floor_gb_per_s=floor.median,
        ratio=ratio.median,
        more={**setting(options), "ratio_min": ratio.least, "ratio_max": ratio.most, "samples": len(busy)},
    )


async def _once(both: Team, ask: Begin) -> int:
    """Return how long it took, from the first submit to the last count, in nanoseconds."""
    ends: list[At] = []

    async def receive() -> None:
        ends.append(await both[1].call(arrive, Expect(counts=ask.count * ask.batches)))

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        since = await both[0].call(begin, ask)
    return ends[0].monotonic_ns - since.monotonic_ns
