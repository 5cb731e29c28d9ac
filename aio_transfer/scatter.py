"""A scatter whose peers, regions and counters are known beforehand: only offsets and lengths are filled in.

An expert-parallel dispatch scatters from one buffer to the same peers hundreds of times a second. Everything that
stays the same is written into the records once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aio_transfer import cutting
from aio_transfer.drivers import RUN, Op
from aio_transfer.errors import UsageError
from aio_transfer.pages import unsigned
from aio_transfer.planner import plan_scatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from aio_transfer.cutting import Plan, Route
    from aio_transfer.regions import Region, RemoteRegion

__all__ = ("PreparedScatter",)


class PreparedScatter:
    """One chunk from ``local`` to each of ``remotes``, again and again."""

    def __init__(
        self,
        local: Region,
        remotes: Sequence[RemoteRegion],
        routes: Sequence[Route],
        *,
        counters: Sequence[int | None] | None = None,
    ) -> None:
        """Fill in what stays the same.

        :param counters: per target the id of its peer's counter; ``None`` for no count
        :raises UsageError: the sequences differ in length, or a peer grants no write
        """
        count = len(remotes)
        ids = [None] * count if counters is None else list(counters)
        if not count == len(routes) == len(ids):
            message = f"a scatter has as many of each: {count} remotes, {len(routes)} routes, {len(ids)} counters"
            raise UsageError(message)
        for remote in remotes:
            if not remote.writable:
                message = f"scatter to {remote.name}: the peer has not granted REMOTE_WRITE"
                raise UsageError(message)
        self._local = local
        self._remotes = tuple(remotes)
        self._routes = tuple(routes)
        self._counters = tuple(ids)
        self._room = np.array([remote.nbytes for remote in remotes], np.uint64)
        self._largest = np.array([_largest(route, count) for route in routes], np.uint64)
        self._rails = np.array([route.rails for route in routes], np.uint64)
        self._first_rails = np.arange(count, dtype=np.uint64)
        self._runs = np.array(
            [
                (route.peer, 0, int(Op.WRITE), local.number, route.remote_region, index, 1, 0)
                for index, route in enumerate(routes)
            ],
            RUN,
        )
        self._words = np.zeros((count, 4), cutting.WORD)
        for index, counter in enumerate(ids):
            self._words[index, 3] = cutting.tag(1, counter)
        self._pieces = cutting.records(self._words)

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self._remotes)

    def plan(self, local_offsets: ArrayLike, remote_offsets: ArrayLike, nbytes: ArrayLike, *, cursor: int = 0) -> Plan:
        """Plan one scatter. Its arrays belong to this object, and hold until the next call of this method.

        :param local_offsets: per target, in bytes from the beginning of our region
        :param remote_offsets: per target, in bytes from the beginning of the peer's region
        :param nbytes: per target; 0 still counts
        :param cursor: the rail that target 0 leaves by, modulo its route's rails
        :raises UsageError: not one of each per target, or a target lies outside a region; the first such is named
        """
        begins = self._numbers(local_offsets, "local offsets")
        remote_begins = self._numbers(remote_offsets, "remote offsets")
        lengths = self._numbers(nbytes, "lengths")
        self._require_inside(begins, lengths, np.uint64(self._local.nbytes), "source")
        self._require_inside(remote_begins, lengths, self._room, "target")
        if np.any(lengths > self._largest):
            return self._plan_cut(begins, remote_begins, lengths, cursor)
        words = self._words
        np.add(begins, np.uint64(self._local.address), out=words[:, 0])
        words[:, 1] = remote_begins
        words[:, 2] = lengths
        self._runs["rail"] = (self._first_rails + np.uint64(cursor)) % self._rails
        return cutting.Plan(self._runs, self._pieces, len(self), int(lengths.sum()))

    def _numbers(self, values: ArrayLike, what: str) -> NDArray[np.uint64]:
        numbers = unsigned(values, what)
        if numbers.size != len(self):
            message = f"{numbers.size} {what} for {len(self)} targets"
            raise UsageError(message)
        return numbers

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

    def _plan_cut(
        self, begins: NDArray[np.uint64], remote_begins: NDArray[np.uint64], lengths: NDArray[np.uint64], cursor: int
    ) -> Plan:
        """Fall back, since some target needs several pieces and the records no longer have one row per target."""
        ends, remote_ends = (begins + lengths).tolist(), (remote_begins + lengths).tolist()
        sources = [self._local[begin:end] for begin, end in zip(begins.tolist(), ends, strict=True)]
        spans = zip(self._remotes, remote_begins.tolist(), remote_ends, strict=True)
        targets = [remote[begin:end] for remote, begin, end in spans]
        return plan_scatter(sources, targets, self._routes, counters=self._counters, cursor=cursor)


def _largest(route: Route, targets: int) -> int:
    """Return up to what length one of several targets travels in one piece."""
    largest = route.max_piece_nbytes if targets >= route.rails else route.whole_nbytes
    return min(largest, 2**64 - 1)
