"""A peer: one incarnation of one engine, and our connection to it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct, field

from aio_transfer.errors import PeerLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.control.connection import FrameConnection
    from aio_transfer.control.frames import GrantReply
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.driver.records import PeerNumber, RegionNumber
    from aio_transfer.driver.transport_path import TransportPath
    from aio_transfer.errors import AioTransferError
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("Connection", "Peer", "PeerState")


class PeerState(enum.Enum):
    """How far a connection is."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LEAVING = "leaving"
    """We said goodbye."""
    LEFT = "left"
    """The peer said goodbye."""
    LOST = "lost"


class Peer:
    """Another engine, as ``engine.connect`` returns it.

    :ivar info: who it is and where it can be dialed
    """

    __slots__ = ("_connection", "info")

    def __init__(self, connection: Connection) -> None:
        """Stand for a connection."""
        self._connection = connection
        self.info = connection.info

    @property
    def label(self) -> str:
        """What people call it: ``host:pid``."""
        return self.info.label

    @property
    def state(self) -> PeerState:
        """How far the connection is."""
        return self._connection.state

    @property
    def path(self) -> TransportPath | None:
        """What carries the bytes; ``None`` before the connection is made."""
        return self._connection.path

    def __repr__(self) -> str:
        """Say who and how."""
        return f"<Peer {self.label} {self.state.value}>"


class Connection(Struct, eq=False):
    """All that is known of one connection; it is never reused for another.

    :param number: the drivers' name for it
    :param token: the session, by which the pulse connection finds it
    :param promised: counters of the peer's that we told it we will raise
    :param owed: counters of ours that the peer told us it will raise
    :param imports: the peer's regions that our driver knows
    :param grants: questions for the peer's regions, by request
    :param granted: our regions that the peer has asked for, and may have mapped
    :param unacked: messages of ours the peer has not consumed yet
    """

    info: PeerInfo
    number: PeerNumber
    token: bytes
    state: PeerState = PeerState.CONNECTING
    driver: OpenDriver | None = None
    control: FrameConnection | None = None
    heartbeat_fd: int = -1
    reason: str = ""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    dial_scope: anyio.CancelScope | None = None
    ready: anyio.Event = field(default_factory=anyio.Event)
    pulsed: bool = False
    joined: bool = False
    fenced: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    acked: anyio.Event = field(default_factory=anyio.Event)
    acked_message: anyio.Event = field(default_factory=anyio.Event)
    failure: Callable[[], AioTransferError] | None = None
    promised: set[int] = field(default_factory=set)
    owed: set[int] = field(default_factory=set)
    imports: dict[tuple[bytes, int, int], RegionNumber] = field(default_factory=dict)
    importing: dict[tuple[bytes, int, int], anyio.Event] = field(default_factory=dict)
    grants: dict[int, Callable[[GrantReply, tuple[int, ...]], None]] = field(default_factory=dict)
    granted: set[int] = field(default_factory=set)
    unacked: int = 0

    @property
    def incarnation(self) -> bytes:
        """Whose it is."""
        return self.info.incarnation

    @property
    def label(self) -> str:
        """What people call the peer."""
        return self.info.label or self.info.incarnation.hex()[:8]

    @property
    def path(self) -> TransportPath | None:
        """What carries the bytes."""
        return None if self.driver is None else self.driver.path

    @property
    def is_up(self) -> bool:
        """Whether transfers can be posted."""
        return self.state is PeerState.CONNECTED

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in (PeerState.LOST, PeerState.LEFT, PeerState.LEAVING)

    def lost_error(self, operation: str = "", nbytes: int = 0) -> AioTransferError:
        """Build the error for something that depended on it."""
        if self.failure is not None:
            return self.failure()
        return PeerLostError(self.label, self.reason or "the connection is over", operation=operation, nbytes=nbytes)

    async def wait_ready(self) -> None:
        """Wait until transfers can be posted.

        :raises AioTransferError: why it could not be connected, or how it was lost
        """
        await self.ready.wait()
        if not self.is_up:
            raise self.lost_error()
