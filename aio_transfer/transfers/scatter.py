"""Scatter: one slice to each of several targets, grouped by peer into one batch for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aio_transfer.errors import UsageError
from aio_transfer.regions.region import RemoteSlice, Slice
from aio_transfer.transfers.planner import plan_scatter
from aio_transfer.transfers.submission import PeerBatch
from aio_transfer.transfers.validation import counter_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.regions.descriptor import CounterRef
    from aio_transfer.transfers.submission import Submission
    from aio_transfer.transfers.transfer import Transfer
    from aio_transfer.transfers.validation import OperandCheck

__all__ = ("submit_scatter",)


def submit_scatter(
    submission: Submission,
    operands: OperandCheck,
    sources: Sequence[Slice],
    targets: Sequence[RemoteSlice],
    counters: Sequence[CounterRef | None] | None,
) -> Transfer:
    """Start to write slice ``i`` to target ``i``.

    :param counters: per target; by default that of its descriptor
    :raises UsageError: numbers or lengths differ, or an operand is not one that can be moved; nothing was started
    """
    operands.check()
    if len(sources) != len(targets) or (counters is not None and len(counters) != len(targets)):
        raise UsageError(f"a scatter of {len(sources)} sources to {len(targets)} targets")
    by_peer: dict[bytes, list[int]] = {}
    numbers: list[int | None] = []
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        operands.check_pair(source, target, Slice, RemoteSlice)
        numbers.append(counter_of(target.region, counters[index] if counters is not None else None))
        by_peer.setdefault(target.region.peer.incarnation, []).append(index)
    return submission.submit_each(
        "scatter",
        [
            _peer_batch([sources[i] for i in at], [targets[i] for i in at], [numbers[i] for i in at])
            for at in by_peer.values()
        ],
        leases=tuple({source.region._lease for source in sources}),
        nbytes=sum(source.nbytes for source in sources),
        count=len(targets),
    )


def _peer_batch(sources: list[Slice], targets: list[RemoteSlice], counters: list[int | None]) -> PeerBatch:
    """Describe the part of a scatter that goes to one peer."""
    announced: dict[int, int] = {}
    for counter in counters:
        if counter is not None:
            announced[counter] = announced.get(counter, 0) + 1
    return PeerBatch(
        targets[0].region.peer,
        [target.region for target in targets],
        lambda routes, cursor: plan_scatter(sources, targets, routes, counters=counters, cursor=cursor),
        tuple(announced.items()),
    )
