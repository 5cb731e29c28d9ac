"""Statistics snapshot of one engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aio_transfer.peers.connection import Connection

__all__ = ("Statistics", "paths_of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Snapshot of one engine.

    :param peers: label → transport path, for every connected peer; equal labels get their incarnation appended
    :param regions: registered now
    :param transfers_in_flight: submitted and not stopped
    :param stalls: stalls reported so far
    :param drivers: per backend, its own running totals: ``writes``, ``reads``, ``nbytes``, ``counts``, ``handles`` …
    """

    peers: Mapping[str, str]
    regions: int
    counters: int
    transfers_in_flight: int
    stalls: int
    drivers: Mapping[str, Mapping[str, int]]


def paths_of(peers: Iterable[Connection]) -> dict[str, str]:
    """Return label → path of every peer that is connected; equal labels get their incarnation."""
    connected = [peer for peer in peers if peer.is_up]
    labels = [peer.label for peer in connected]
    return {
        peer.label if labels.count(peer.label) == 1 else f"{peer.label} ({peer.incarnation.hex()[:8]})": str(peer.path)
        for peer in connected
    }
