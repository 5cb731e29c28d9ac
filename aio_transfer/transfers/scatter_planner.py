"""Scatter planner: fills offsets and lengths into prepared records of a scatter to fixed targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aio_transfer.backends.native import fill_pieces
from aio_transfer.driver.records import PIECE, RUN, Op
from aio_transfer.errors import UsageError
from aio_transfer.regions.pages import unsigned
from aio_transfer.transfers import striping
from aio_transfer.transfers.planner import plan_scatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from aio_transfer.regions.region import Region, RemoteRegion, RemoteSlice, Slice
    from aio_transfer.transfers.striping import Batch, Route

__all__ = ("ScatterPlanner", "Spans", "require_writable", "slices_of", "spans_of")


class ScatterPlanner:
    """Prepared records of a scatter: one chunk of ``local`` to each of ``remotes``."""

    def __init__(
        self,
        local: Region,
        remotes: Sequence[RemoteRegion],
        routes: Sequence[Route],
        *,
        counters: Sequence[int | None] | None = None,
    ) -> None:
        """Fill in everything but offsets and lengths.

        :param counters: per target the id of its peer's counter; ``None`` for no count
        :raises UsageError: the sequences differ in length, or a peer grants no write
        """
        count = len(remotes)
        ids = [None] * count if counters is None else list(counters)
        if not count == len(routes) == len(ids):
            message = f"a scatter has as many of each: {count} remotes, {len(routes)} routes, {len(ids)} counters"
            raise UsageError(message)
        require_writable(remotes)
        self._local = local
        self._remotes = tuple(remotes)
        self._routes = tuple(routes)
        self._counters = tuple(ids)
        self._room = np.array([remote.nbytes for remote in remotes], np.uint64)
        self._largest = min([_largest(route, count) for route in routes], default=0)
        self._rails = np.array([route.rails for route in routes], np.uint64)
        self._many_rails = any(route.rails > 1 for route in routes)
        self._first_rails = np.arange(count, dtype=np.uint64)
        self._runs = np.array(
            [
                (route.peer, 0, int(Op.WRITE), local.number, route.remote_region, index, 1, 0)
                for index, route in enumerate(routes)
            ],
            RUN,
        )
        self._memory = bytearray(count * PIECE.itemsize)
        words = np.frombuffer(self._memory, striping.WORD).reshape(count, 4)
        words[:, 3] = [striping.tag(1, counter) for counter in ids]
        self._pieces = striping.records(words)

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self._remotes)

    def plan(self, local_offsets: ArrayLike, remote_offsets: ArrayLike, nbytes: ArrayLike, *, cursor: int = 0) -> Batch:
        """Plan one scatter. Its arrays belong to this object, and are valid until the next call.

        :param local_offsets: per target, in bytes from the beginning of our region
        :param remote_offsets: per target, in bytes from the beginning of the peer's region
        :param nbytes: per target; 0 still counts
        :param cursor: the rail that target 0 leaves by, modulo its route's rails
        :raises UsageError: not one of each per target, or a target lies outside a region; the first such is named
        """
        plan = self.plan_whole(local_offsets, remote_offsets, nbytes, cursor)
        if plan is None:
            spans = self.spans(local_offsets, remote_offsets, nbytes)
            plan = self.plan_whole(*spans, cursor)
        if plan is None:
            sources, targets = slices_of(self._local, self._remotes, spans)
            plan = plan_scatter(sources, targets, self._routes, counters=self._counters, cursor=cursor)
        return plan

    def plan_whole(
        self, local_offsets: ArrayLike, remote_offsets: ArrayLike, nbytes: ArrayLike, cursor: int
    ) -> Batch | None:
        """Plan one scatter with one piece per target.

        Returns ``None`` where that is not possible: a piece is too large or outside its regions, or the arguments are
        not arrays of 64-bit integers, one per target. :meth:`spans` finds out which.
        """
        total = fill_pieces(
            self._memory,
            local_offsets,
            remote_offsets,
            nbytes,
            self._room,
            self._local.address,
            self._local.nbytes,
            self._largest,
        )
        if total is None:
            return None
        if self._many_rails:
            self._runs["rail"] = (self._first_rails + np.uint64(cursor)) % self._rails
        return striping.Batch(self._runs, self._pieces, len(self), total)

    def spans(self, local_offsets: ArrayLike, remote_offsets: ArrayLike, nbytes: ArrayLike) -> Spans:
        """Convert a caller's offsets and lengths.

        :raises UsageError: not one number of each per target, or a target lies outside a region
        """
        spans = spans_of(local_offsets, remote_offsets, nbytes, len(self))
        self._require_inside(spans.begins, spans.lengths, np.uint64(self._local.nbytes), "source")
        self._require_inside(spans.remote_begins, spans.lengths, self._room, "target")
        return spans

    def _require_inside(
        self, begins: NDArray[np.uint64], lengths: NDArray[np.uint64], room: NDArray[np.uint64] | np.uint64, what: str
    ) -> None:
        # Written so that no sum can wrap; where the difference would, the first comparison has already failed.
        bad = (lengths > room) | (begins > room - lengths)
        if bad.any():
            index = int(np.argmax(bad))
            begin, end = int(begins[index]), int(begins[index]) + int(lengths[index])
            region = self._local.name if what == "source" else self._remotes[index].name
            limit = self._local.nbytes if what == "source" else self._remotes[index].nbytes
            message = f"{what} {index}: bytes {begin} … {end} are not within the {limit} B of {region}"
            raise UsageError(message)


class Spans(NamedTuple):
    """Per target, in bytes: offset in the local region, offset in the remote region, length."""

    begins: NDArray[np.uint64]
    remote_begins: NDArray[np.uint64]
    lengths: NDArray[np.uint64]


def spans_of(local_offsets: ArrayLike, remote_offsets: ArrayLike, nbytes: ArrayLike, targets: int) -> Spans:
    """Convert a caller's offsets and lengths.

    :raises UsageError: it is not one number of each per target
    """
    return Spans(
        _numbers(local_offsets, "local offsets", targets),
        _numbers(remote_offsets, "remote offsets", targets),
        _numbers(nbytes, "lengths", targets),
    )


def _numbers(values: ArrayLike, what: str, targets: int) -> NDArray[np.uint64]:
    numbers = unsigned(values, what)
    if numbers.size != targets:
        message = f"{numbers.size} {what} for {targets} targets"
        raise UsageError(message)
    return numbers


def slices_of(local: Region, remotes: Sequence[RemoteRegion], spans: Spans) -> tuple[list[Slice], list[RemoteSlice]]:
    """Return the slices that a scatter names, one per target on either side."""
    begins, remote_begins, lengths = (numbers.tolist() for numbers in spans)
    sources = [local[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]
    targets = [
        remote[begin : begin + length] for remote, begin, length in zip(remotes, remote_begins, lengths, strict=True)
    ]
    return sources, targets


def require_writable(remotes: Sequence[RemoteRegion]) -> None:
    """Refuse targets without REMOTE_WRITE.

    :raises UsageError: naming the first such region
    """
    for remote in remotes:
        if not remote.writable:
            message = f"scatter to {remote.name}: the peer has not granted REMOTE_WRITE"
            raise UsageError(message)


def _largest(route: Route, targets: int) -> int:
    """Return the largest length of one of several targets that travels in one piece."""
    largest = route.max_piece_nbytes if targets >= route.rails else route.whole_nbytes
    return min(largest, 2**64 - 1)
