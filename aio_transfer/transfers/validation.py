"""What callers pass, checked as far as no peer is needed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.errors import UsageError
from aio_transfer.peers.connection import Peer
from aio_transfer.regions.region import Pages, RemotePages, RemoteRegion, RemoteSlice, Slice
from aio_transfer.topology.peer_info import PeerInfo
from aio_transfer.transfers.planner import plan_scatter
from aio_transfer.transfers.submission import PeerBatch

if TYPE_CHECKING:
    from aio_transfer.regions.descriptor import CounterRef

__all__ = ("address_of", "counter_of", "kind_of", "require_kinds", "require_other", "scatter_job")

_CUTS: Final = {Slice: "[a:b]", Pages: ".pages(ids, page_nbytes)"}


def kind_of(given: object) -> str:
    """Name what was given, for a message."""
    return type(given).__name__


def require_kinds(
    local: Slice | Pages, remote: RemoteSlice | RemotePages, ours: type[Slice | Pages], theirs: type
) -> None:
    """Refuse what only looks like a part of a region.

    :raises UsageError: saying how the right thing is made
    """
    if not isinstance(local, ours) or not isinstance(remote, theirs):
        raise UsageError(
            f"between {kind_of(local)} and {kind_of(remote)}: it takes {ours.__name__} and {theirs.__name__}, as "
            f"region{_CUTS[ours]} and remote{_CUTS[ours]} give them"
        )


def address_of(peer: PeerInfo | Peer | RemoteRegion) -> PeerInfo:
    """Find whom the caller means.

    :raises UsageError: it is nobody
    """
    if isinstance(peer, PeerInfo):
        return peer
    if isinstance(peer, RemoteRegion):
        return peer.peer
    if isinstance(peer, Peer):
        return peer.info
    raise UsageError(
        f"{kind_of(peer)} is no peer: give remote.peer, the other engine's address, or what connect() gave"
    )


def counter_of(remote: RemoteRegion, counter: CounterRef | None) -> int | None:
    """Return the id to raise: the one given, else the descriptor's.

    :raises UsageError: it is another engine's counter than the target's
    """
    if counter is None:
        return remote.descriptor.counter
    if counter.peer.incarnation != remote.peer.incarnation:
        raise UsageError(f"the counter is {counter.peer.label}'s, and the target {remote.peer.label}'s")
    return counter.id


def require_other(peer: PeerInfo, engine: PeerInfo) -> None:
    """Refuse an operation of an engine with itself.

    :raises UsageError: the peer is the engine
    """
    if peer.incarnation == engine.incarnation:
        raise UsageError("this engine is no peer of itself: copy with NumPy")


def scatter_job(sources: list[Slice], targets: list[RemoteSlice], counters: list[int | None]) -> PeerBatch:
    """Describe what a scatter does with one peer."""
    promises: dict[int, int] = {}
    for counter in counters:
        if counter is not None:
            promises[counter] = promises.get(counter, 0) + 1
    return PeerBatch(
        targets[0].region.peer,
        [target.region for target in targets],
        lambda routes, cursor: plan_scatter(sources, targets, routes, counters=counters, cursor=cursor),
        tuple(promises.items()),
    )
