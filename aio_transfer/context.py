"""Engine context: the parts of one engine that groups and scatters work with.

The engine builds it once and hands it on, so that none of them holds the engine itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.counters.table import CounterTable
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.regions.region_registry import RegionRegistry
    from aio_transfer.runtime.event_loop import EventLoop
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.announcements import CountAnnouncements
    from aio_transfer.transfers.routes import RouteTable
    from aio_transfer.transfers.submission import Submission
    from aio_transfer.transfers.validation import OperandCheck

__all__ = ("EngineContext",)


class EngineContext(Struct, frozen=True, kw_only=True, eq=False):
    """Parts of one open engine.

    :param check: refuses use before open, after close, and from another thread, loop or process
    :param operands: checks of the memory and the peers that operations name
    """

    loop: EventLoop
    address: PeerInfo
    connections: ConnectionManager
    counters: CounterTable
    registry: RegionRegistry
    routes: RouteTable
    announcements: CountAnnouncements
    submission: Submission
    check: Callable[[], None]
    operands: OperandCheck
