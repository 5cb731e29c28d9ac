"""Prepared scatter: peers, regions and counters are resolved once; each scatter names offsets and lengths alone.

An expert-parallel dispatch scatters from one buffer to the same peers hundreds of times a second. Everything that
stays the same is written into the records once, and one native call posts to all peers.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from aio_transfer.driver.protocol import PreparedDriver
from aio_transfer.regions.descriptor import CounterRef
from aio_transfer.runtime.concurrency import for_each_concurrently
from aio_transfer.transfers.scatter import submit_scatter
from aio_transfer.transfers.scatter_planner import ScatterPlanner, Spans, require_writable, slices_of, spans_of
from aio_transfer.transfers.submission import MAX_PREPARED, PreparedPost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from aio_transfer.context import EngineContext
    from aio_transfer.regions.region import Region, RemoteRegion
    from aio_transfer.transfers.announcements import AnnouncedCounts
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("PreparedScatter",)


class PreparedScatter:
    """Repeated scatter from one region of ours to the same targets; ``group.prepare_scatter`` makes it.

    :ivar source: our region
    :ivar targets: the peers' regions
    """

    def __init__(
        self, context: EngineContext, source: Region, targets: Sequence[RemoteRegion], counters: Sequence[int | None]
    ) -> None:
        """Store what all scatters share; no peer is connected yet.

        :raises UsageError: a peer grants no write
        """
        context.check()
        context.operands.require_own(source)
        require_writable(targets)
        self._context = context
        self.source = source
        self.targets = tuple(targets)
        self._counters = tuple(counters)
        self._announced: list[AnnouncedCounts] = [() if counter is None else ((counter, 1),) for counter in counters]
        self._label = f"{len(self.targets)} peers"
        self._cursor = itertools.count()
        self._known = -1
        self._post: PreparedPost | None = None
        self._planner: ScatterPlanner | None = None

    async def _connect(self) -> None:
        """Connect to all peers concurrently, and import their regions.

        :raises AioTransferError: the first peer's reason that cannot be reached
        """
        routes = self._context.routes
        pairs = zip(self.targets, self._announced, strict=True)
        await for_each_concurrently(pairs, lambda pair: routes.resolve(pair[0].peer, pair[0], pair[1]))
        self._resolve()

    def _resolve(self) -> None:
        """Resolve the present routes. They are valid until the engine drops any of its routes."""
        table = self._context.routes
        self._known = table.generation
        self._planner = None
        known = [table.known.get(target.key) for target in self.targets]
        resolved = [route for route in known if route is not None]
        driver = resolved[0].driver.driver if resolved else None
        if not isinstance(driver, PreparedDriver) or len(resolved) < len(known) or len(known) > MAX_PREPARED:
            return
        if any(route.driver.driver is not driver for route in resolved):
            return
        for route, announced in zip(resolved, self._announced, strict=True):
            self._context.announcements.announce(route.connection, announced)
        self._post = PreparedPost(driver, self._label, resolved, self._announced, self.source)
        routes = [route.route for route in resolved]
        self._planner = ScatterPlanner(self.source, self.targets, routes, counters=self._counters)

    async def scatter(self, local_offsets: ArrayLike, remote_offsets: ArrayLike, nbytes: ArrayLike) -> None:
        """Write ``nbytes[i]`` bytes at ``local_offsets[i]`` to ``remote_offsets[i]`` of target ``i``; each counts once.

        :param local_offsets: per target, in bytes from the beginning of our region
        :param remote_offsets: per target, in bytes from the beginning of the peer's
        :param nbytes: per target; 0 still counts
        :raises UsageError: not one of each per target, or a target lies outside a region; the first such is named
        :raises PeerLostError: a peer died; what went to the others is unharmed
        :cancellation: the await ends at once; the writes go on and the source stays leased
        """
        await self.submit_scatter(local_offsets, remote_offsets, nbytes)

    def submit_scatter(self, local_offsets: ArrayLike, remote_offsets: ArrayLike, nbytes: ArrayLike) -> Transfer:
        """Start the writes of :meth:`scatter`, and return at once."""
        self._context.check()
        if self._planner is None or self._context.routes.generation != self._known:
            self._resolve()
        if self._planner is None or self._post is None:
            return self._submit_slices(spans_of(local_offsets, remote_offsets, nbytes, len(self.targets)))
        plan = self._planner.plan_whole(local_offsets, remote_offsets, nbytes, cursor := next(self._cursor))
        if plan is None:
            spans = self._planner.spans(local_offsets, remote_offsets, nbytes)
            plan = self._planner.plan_whole(*spans, cursor)
            if plan is None:
                return self._submit_slices(spans)
        return self._context.submission.submit_prepared(self._post, plan)

    def _submit_slices(self, spans: Spans) -> Transfer:
        """Submit an ordinary scatter: a connection has ended and is made again, or a chunk needs several pieces."""
        refs = [
            None if counter is None else CounterRef(target.peer, counter)
            for target, counter in zip(self.targets, self._counters, strict=True)
        ]
        sources, targets = slices_of(self.source, self.targets, spans)
        return submit_scatter(self._context.submission, self._context.operands, sources, targets, refs)
