"""Planner: turns slices and page lists into one batch of records that a driver posts.

Pure functions, vectorised: no Python loop over pages.

Measured (2 cores, Python 3.11): 0.7 µs for a write in one piece; for pages 9 µs and 3 ns each.

:source: docs/explanation/contract.md, rules 1 to 3; docs/explanation/architecture.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from aio_transfer.driver.records import ANY_REGION, MAX_COUNTER_ID, PIECE, PIECE_STRUCT, RUN_STRUCT, Op, PieceFlag
from aio_transfer.errors import UsageError
from aio_transfer.transfers import striping
from aio_transfer.transfers.striping import STRIPE_NBYTES, Batch, Route, immediate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from aio_transfer.regions.region import Pages, Region, RemotePages, RemoteSlice, Slice

__all__ = (
    "STRIPE_NBYTES",
    "Batch",
    "Route",
    "plan_notify",
    "plan_pages",
    "plan_read",
    "plan_read_pages",
    "plan_scatter",
    "plan_write",
)

_IMMEDIATE: Final = int(PieceFlag.IMMEDIATE)
# As plain ints: reading an enum's attribute costs the fast path more than the arithmetic does.
_WRITE: Final = int(Op.WRITE)
_READ: Final = int(Op.READ)
_pack_run = RUN_STRUCT.pack
_pack_piece = PIECE_STRUCT.pack


def plan_write(source: Slice, target: RemoteSlice, route: Route, counter: int | None = None, cursor: int = 0) -> Batch:
    """Plan one contiguous write: one piece, or pieces spread over the rails when it is large.

    Without bytes it is one empty piece, which still counts once.

    :param counter: 24-bit id of the peer's counter
    :param cursor: the rail to begin with, modulo ``route.rails``; raise it by one per plan
    :raises UsageError: lengths differ, or the peer grants no write
    """
    nbytes = source.nbytes
    if nbytes != target.nbytes or not target.region.writable:
        raise _refusal("write", source, target, nbytes, target.nbytes, None)
    return _contiguous(_WRITE, source, target, route, counter, cursor)


def plan_read(target: Slice, source: RemoteSlice, route: Route, counter: int | None = None, cursor: int = 0) -> Batch:
    """Plan one contiguous read.

    :param target: the local slice that is filled
    :raises UsageError: lengths differ, the peer grants no read, the local memory is read-only, or a counter is given
    """
    _require_uncounted(counter)
    nbytes = target.nbytes
    if nbytes != source.nbytes or not source.region.readable or target.region.readonly:
        raise _refusal("read", source, target, source.nbytes, nbytes, target.region)
    return _contiguous(_READ, target, source, route, None, cursor)


def _contiguous(
    op: int, local: Slice, remote: RemoteSlice, route: Route, counter: int | None, cursor: int, chunks: int = 1
) -> Batch:
    nbytes = local.nbytes
    region = local.region
    if nbytes > route.whole_nbytes:
        return _cut_contiguous(op, local, remote, route, counter, cursor, chunks)
    if counter is None:
        number = flags = 0
    else:
        number, flags = counter, _IMMEDIATE
        if not 0 <= counter <= MAX_COUNTER_ID:
            number = immediate(counter)
    run = _pack_run(route.peer, cursor % route.rails, op, region.number, route.remote_region, 0, 1, 0)
    return Batch(run, _pack_piece(region.address + local.offset, remote.offset, nbytes, number, flags), 1, nbytes)


def _cut_contiguous(
    op: int, local: Slice, remote: RemoteSlice, route: Route, counter: int | None, cursor: int, chunks: int
) -> Batch:
    count = striping.pieces_per_chunk(local.nbytes, chunks, route)
    words = np.empty((count, 4), striping.WORD)
    places = striping.bounds(local.nbytes, count, route.grain_nbytes)
    np.add(places[:-1], np.uint64(local.region.address + local.offset), out=words[:, 0])
    np.add(places[:-1], np.uint64(remote.offset), out=words[:, 1])
    np.subtract(places[1:], places[:-1], out=words[:, 2])
    words[:, 3] = striping.tag(count, counter)
    runs = striping.runs(op, route, local.region.number, count, cursor)
    return _counted(runs, words, route, None if count == 1 else counter, cursor, 1, local.nbytes)


def _counted(
    runs: list[bytes],
    words: NDArray[np.uint64],
    route: Route,
    counter: int | None,
    cursor: int,
    chunks: int,
    nbytes: int,
) -> Batch:
    """Build the batch; with a counter, its chunks are cut, and counted when all their pieces have been delivered."""
    if counter is not None:
        run, rows = striping.counts(route, counter, chunks, first=len(words), after=len(runs), cursor=cursor)
        runs.append(run)
        words = np.concatenate((words, rows))
    return Batch(b"".join(runs), striping.records(words), chunks, nbytes)


def plan_pages(source: Pages, target: RemotePages, route: Route, counter: int | None = None, cursor: int = 0) -> Batch:
    """Plan a write of local page ``i`` to remote page ``i``; one count per page.

    The pages are divided into contiguous ranges of nearly equal size, one per rail. A page larger than the largest
    piece is cut, and so are a few large pages where there are more rails than pages. Neighbours are not merged: each
    page counts. No page at all gives a batch without runs.

    :raises UsageError: numbers or sizes differ, or the peer grants no write
    """
    _require_as_many(source, target)
    if source.page_nbytes != target.page_nbytes or not target.region.writable:
        raise _refusal("write", source, target, source.page_nbytes, target.page_nbytes, None)
    return _paged(_WRITE, source, target, route, counter, cursor)


def plan_read_pages(
    target: Pages, source: RemotePages, route: Route, counter: int | None = None, cursor: int = 0
) -> Batch:
    """Plan a read of remote page ``i`` into local page ``i``, as :func:`plan_pages` does for writes.

    :raises UsageError: numbers or sizes differ, the peer grants no read, the local memory is read-only, or a
        counter is given
    """
    _require_uncounted(counter)
    _require_as_many(target, source)
    if target.page_nbytes != source.page_nbytes or not source.region.readable or target.region.readonly:
        raise _refusal("read", source, target, source.page_nbytes, target.page_nbytes, target.region)
    return _paged(_READ, target, source, route, None, cursor)


def _require_as_many(local: Pages, remote: RemotePages) -> None:
    if len(local) != len(remote):
        message = f"{len(local)} pages of {local.region.name}, but {len(remote)} of {remote.region.name}"
        raise UsageError(message)


def _require_uncounted(counter: int | None) -> None:
    if counter is not None:
        message = "a read raises no counter: it has no immediate on any transport"
        raise UsageError(message)


def _paged(op: int, local: Pages, remote: RemotePages, route: Route, counter: int | None, cursor: int) -> Batch:
    chunks, page_nbytes = len(local), local.page_nbytes
    if not chunks:
        return Batch(b"", b"", 0, 0)
    per_page = striping.pieces_per_chunk(page_nbytes, chunks, route)
    runs = striping.runs(op, route, local.region.number, chunks * per_page, cursor)
    words = np.empty((chunks, per_page, 4), striping.WORD)
    local._write_addresses(words[:, 0, 0], local.region.address)
    remote._write_addresses(words[:, 0, 1], 0)
    if per_page > 1:
        places = striping.bounds(page_nbytes, per_page, route.grain_nbytes)
        np.add(words[:, :1, :2], places[1:-1, None], out=words[:, 1:, :2])
        words[:, :, 2] = places[1:] - places[:-1]
    else:
        words[:, :, 2] = page_nbytes
    words[:, :, 3] = striping.tag(per_page, counter)
    late = None if per_page == 1 else counter
    return _counted(runs, words.reshape(-1, 4), route, late, cursor, chunks, chunks * page_nbytes)


def plan_scatter(
    sources: Sequence[Slice],
    targets: Sequence[RemoteSlice],
    routes: Sequence[Route],
    *,
    counters: Sequence[int | None] | None = None,
    cursor: int = 0,
) -> Batch:
    """Plan a write of local slice ``i`` to remote slice ``i``, each with its own peer, region and counter.

    One count per target, also for empty ones. Consecutive targets begin with consecutive rails.

    :param counters: per target the id of its peer's counter; ``None`` for no count
    :raises UsageError: the sequences differ in length, or a target does not fit, as in :func:`plan_write`
    """
    counts = counters if counters is not None else [None] * len(targets)
    if not len(sources) == len(targets) == len(routes) == len(counts):
        sizes = f"{len(sources)} sources, {len(targets)} targets, {len(routes)} routes and {len(counts)} counters"
        message = f"a scatter has as many of each: {sizes}"
        raise UsageError(message)
    runs = bytearray()
    pieces = bytearray()
    nbytes = 0
    for index, (source, target, route, counter) in enumerate(zip(sources, targets, routes, counts, strict=True)):
        if source.nbytes != target.nbytes or not target.region.writable:
            operation = f"scatter (target {index})"
            raise _refusal(operation, source, target, source.nbytes, target.nbytes, None)
        one = _contiguous(_WRITE, source, target, route, counter, cursor + index, len(targets))
        first = len(pieces) // PIECE.itemsize
        for peer, rail, op, local, remote, begin, count, after in RUN_STRUCT.iter_unpack(bytes(one.runs)):
            runs += _pack_run(peer, rail, op, local, remote, first + begin, count, after)
        pieces += bytes(one.pieces)
        nbytes += one.nbytes
    return Batch(bytes(runs), bytes(pieces), len(targets), nbytes)


def plan_notify(route: Route, counter: int, cursor: int = 0) -> Batch:
    """Plan one count without a payload.

    :param route: to any region of the peer's; with ``ANY_REGION`` as ``remote_region`` it names no memory
    """
    run = _pack_run(route.peer, cursor % route.rails, _WRITE, ANY_REGION, route.remote_region, 0, 1, 0)
    return Batch(run, _pack_piece(0, 0, 0, immediate(counter), _IMMEDIATE), 1, 0)


def _refusal(
    operation: str, source: object, target: object, source_nbytes: int, target_nbytes: int, local: Region | None
) -> UsageError:
    """Return the error for the first of the three reasons that holds. ``local`` is what a read would fill."""
    what = f"{operation} from {source!r} to {target!r}"
    if source_nbytes != target_nbytes:
        return UsageError(f"{what}: source is {source_nbytes} B, target is {target_nbytes} B")
    if local is not None and local.readonly:
        return UsageError(f"{what}: the memory of {local.name} is read-only")
    return UsageError(f"{what}: the peer has not granted {'REMOTE_WRITE' if local is None else 'REMOTE_READ'}")
