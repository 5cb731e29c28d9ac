"""Memory use of transfers: of pages in flight, and of very many transfers that have completed."""

from __future__ import annotations

import ctypes
import gc
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aio_transfer.bench.families.bandwidth import connect_source_to_target
from aio_transfer.bench.report.result import Workload
from aio_transfer.bench.workers.bandwidth_steps import chunk_order
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.worker_state import WorkerState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from aio_transfer import Transfer
    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

PAGE_NBYTES: Final = 64 << 10
COUNT: Final = 4096
BATCHES: Final = 4
TRANSFERS: Final = 100_000
DEPTH: Final = 64
MEASUREMENTS: Final = 10
"""Of resident memory, evenly spread over the transfers."""
_SYSTEM_PAGE_NBYTES: Final = os.sysconf("SC_PAGE_SIZE")


class MoveAndWrite(msgspec.Struct, frozen=True):
    """Request to move pages, all batches at once, and then to make many small writes.

    :param nbytes: per page
    """

    nbytes: int
    count: int
    batches: int
    transfers: int


class MemoryUse(msgspec.Struct, frozen=True):
    """Memory of the process, in bytes.

    :param in_flight: bytes of ``malloc`` for all submitted batches, none of them awaited; -1 without ``mallinfo2``
    :param resident: resident set size, after each tenth of the writes
    """

    in_flight: int
    resident: list[int]


async def measure_memory(state: WorkerState, request: MoveAndWrite) -> MemoryUse:
    """Perform :class:`MoveAndWrite`."""
    engine, region, remote = state.engines[0], state.memories[0].region, state.remotes[0]
    sources = region.pages(chunk_order(request.count, "source"), request.nbytes)
    targets = remote.pages(chunk_order(request.count, "target"), request.nbytes)
    await engine.submit_write_pages(sources, targets)
    before = _allocated()
    batches = [engine.submit_write_pages(sources, targets) for _ in range(request.batches)]
    in_flight = -1 if before < 0 else _allocated() - before
    for transfer in batches:
        await transfer
    source, target = region[0:8], remote[0:8]
    resident: list[int] = []
    for _ in range(MEASUREMENTS):
        await _write(lambda: engine.submit_write(source, target), request.transfers // MEASUREMENTS)
        gc.collect()
        resident.append(_resident())
    return MemoryUse(in_flight, resident)


async def _write(submit: Callable[[], Transfer], transfers: int) -> None:
    """Submit transfers, :data:`DEPTH` of them in flight, and await all."""
    in_flight: deque[Transfer] = deque()
    for _ in range(transfers):
        if len(in_flight) == DEPTH:
            await in_flight.popleft()
        in_flight.append(submit())
    while in_flight:
        await in_flight.popleft()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _SYSTEM_PAGE_NBYTES


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33, malloc.h. It is of the main arena, from which this thread allocates."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def _allocated() -> int:
    """Return the bytes that ``malloc`` has handed out, or -1 if the C library has no ``mallinfo2``."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return -1
    mallinfo.restype = _Mallinfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure ``bytes_per_page`` in flight, and ``grown_kib`` from the first tenth of the writes to the last."""
    nbytes, transfers = options.sizes[0] if options.sizes else PAGE_NBYTES, options.count or TRANSFERS
    async with start_workers(options, (1, 1)) as coordinator:
        target = await connect_source_to_target(coordinator, options, nbytes * COUNT)
        use = await coordinator[0].call(measure_memory, MoveAndWrite(nbytes, COUNT, BATCHES, transfers))
        counts = COUNT * (BATCHES + 1) + transfers // MEASUREMENTS * MEASUREMENTS
        await coordinator[1].await_counts(counts)
    workload = Workload(test="memory", options=options, provider=target.provider, nbytes=nbytes, count=COUNT * BATCHES)
    yield workload.result(
        {
            "bytes_per_page": None if use.in_flight < 0 else use.in_flight / (COUNT * BATCHES),
            "transfers": transfers,
            "resident_mib": use.resident[-1] / (1 << 20),
            "grown_kib": (use.resident[-1] - use.resident[0]) / 1024,
            "samples": len(use.resident),
            "baseline_reason": "memory is counted, not timed",
        }
    )
