"""What transfers cost in memory: pages that are under way, and very many transfers that are over."""

from __future__ import annotations

import ctypes
import gc
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aio_transfer.bench.families.bandwidth import source_and_target
from aio_transfer.bench.report.result import Result, setting
from aio_transfer.bench.workers.bandwidth_steps import chunks
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.worker_state import Place

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer import Transfer
    from aio_transfer.bench.options import Options

__all__ = ("run",)

PAGE: Final = 64 << 10
COUNT: Final = 4096
BATCHES: Final = 4
TRANSFERS: Final = 100_000
DEPTH: Final = 64
_PAGE_NBYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Grow(msgspec.Struct, frozen=True):
    """Move so many pages at once, then make so many small writes.

    :param nbytes: per page
    """

    nbytes: int
    count: int
    batches: int
    transfers: int


class Grown(msgspec.Struct, frozen=True):
    """What that took, in bytes.

    :param queued: of ``malloc``, with all batches submitted and none awaited; -1 where the C library does not say
    :param resident: of the process, after each tenth of the writes
    """

    queued: int
    resident: list[int]


async def grow(place: Place, ask: Grow) -> Grown:
    """Perform :class:`Grow`."""
    engine, region, remote = place.engines[0], place.held[0].region, place.remotes[0]
    ours, theirs = chunks(ask.count, "source"), chunks(ask.count, "target")
    lists = region.pages(ours, ask.nbytes), remote.pages(theirs, ask.nbytes)
    await engine.submit_write_pages(*lists)
    before = _allocated()
    under_way = [engine.submit_write_pages(*lists) for _ in range(ask.batches)]
    queued = -1 if before < 0 else _allocated() - before
    for transfer in under_way:
        await transfer
    source, target = region[0:8], remote[0:8]
    resident: list[int] = []
    window: deque[Transfer] = deque()
    for _ in range(10):
        for _ in range(ask.transfers // 10):
            if len(window) == DEPTH:
                await window.popleft()
            window.append(engine.submit_write(source, target))
        while window:
            await window.popleft()
        gc.collect()
        resident.append(_resident())
    return Grown(queued, resident)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_NBYTES


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33, malloc.h. It is of the main arena, from which this thread allocates."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def _allocated() -> int:
    """Return how many bytes ``malloc`` has given out, or -1 where it does not say."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return -1
    mallinfo.restype = _Mallinfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure."""
    nbytes, transfers = options.sizes[0] if options.sizes else PAGE, options.count or TRANSFERS
    async with team(options, (1, 1)) as both:
        target = await source_and_target(both, options, nbytes * COUNT)
        grown = await both[0].call(grow, Grow(nbytes, COUNT, BATCHES, transfers))
        await both[1].expect(COUNT * (BATCHES + 1) + transfers // 10 * 10)
    queued = None if grown.queued < 0 else grown.queued / (COUNT * BATCHES)
    yield Result(
        test="growth",
        backend=options.backend,
        provider=target.provider,
        nbytes=nbytes,
        count=COUNT * BATCHES,
        more={
            **setting(options),
            "bytes_per_page": queued,
            "transfers": transfers,
            "resident_mib": grown.resident[-1] / (1 << 20),
            "grown_kib": (grown.resident[-1] - grown.resident[0]) / 1024,
            "samples": len(grown.resident),
            "floor_reason": "memory is counted, not timed",
        },
    )
