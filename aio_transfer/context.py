"""Engine context: the parts of one engine that groups, scatters and messages work with.

The engine builds it once and hands it on, so that none of them holds the engine itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.counters.table import CounterTable
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.regions.region import Region
    from aio_transfer.runtime.event_loop import EventLoop
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.submission import Submission

__all__ = ("EngineContext",)


class EngineContext(Struct, frozen=True, kw_only=True, eq=False):
    """Parts of one open engine.

    :param check: refuses use before open, after close, and from another thread, loop or process
    :param require_registered: refuses a region that is not registered with this engine
    """

    loop: EventLoop
    address: PeerInfo
    connections: ConnectionManager
    counters: CounterTable
    submission: Submission
    check: Callable[[], None]
    require_registered: Callable[[Region], None]
