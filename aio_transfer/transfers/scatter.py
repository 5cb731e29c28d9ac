"""Scatter submission: one slice to each of several targets, each at its own peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aio_transfer.errors import UsageError
from aio_transfer.regions.region import RemoteSlice, Slice
from aio_transfer.transfers.validation import counter_of, require_kinds, require_other, scatter_job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_transfer.regions.descriptor import CounterRef
    from aio_transfer.regions.region import Region
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.submission import Submission
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("submit_scatter",)


class ScatterContext(Protocol):
    """Parts of the engine's context that a scatter uses."""

    @property
    def address(self) -> PeerInfo:
        """This engine."""
        ...

    @property
    def submission(self) -> Submission:
        """The engine's transfers under way."""
        ...

    @property
    def check(self) -> Callable[[], None]:
        """Refuses use before open, after close, and from elsewhere."""
        ...

    @property
    def require_registered(self) -> Callable[[Region], None]:
        """Refuses a region that is not registered with the engine."""
        ...


def submit_scatter(
    context: ScatterContext,
    sources: Sequence[Slice],
    targets: Sequence[RemoteSlice],
    counters: Sequence[CounterRef | None] | None,
) -> Transfer:
    """Start to write slice ``i`` to target ``i``; each target counts once.

    :param counters: by default, per target, the counter in its region's descriptor
    :raises UsageError: the numbers or lengths differ, a source is not registered here, or a target is not writable
    :raises ClosedError: a source is closing
    """
    context.check()
    if len(sources) != len(targets) or (counters is not None and len(counters) != len(targets)):
        raise UsageError(f"a scatter of {len(sources)} sources to {len(targets)} targets")
    by_peer: dict[bytes, list[int]] = {}
    numbers: list[int | None] = []
    me = context.address.incarnation
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if type(source) is not Slice or type(target) is not RemoteSlice:
            require_kinds(source, target, Slice, RemoteSlice)
        context.require_registered(source.region)
        peer = target.region.peer
        if peer.incarnation == me:
            require_other(peer, context.address)
        numbers.append(counter_of(target.region, counters[index] if counters is not None else None))
        by_peer.setdefault(peer.incarnation, []).append(index)
    return context.submission.submit_each(
        "scatter",
        [
            scatter_job([sources[i] for i in at], [targets[i] for i in at], [numbers[i] for i in at])
            for at in by_peer.values()
        ],
        leases=tuple({source.region for source in sources}),
        nbytes=sum(source.nbytes for source in sources),
        count=len(targets),
    )
