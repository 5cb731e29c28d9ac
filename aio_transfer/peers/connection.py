"""Connection record: everything that the engine keeps per connection, in one sub-record per service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from msgspec import Struct, field

from aio_transfer.errors import PeerLostError
from aio_transfer.peers.connection_state import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.control.authentication import AttachProofs
    from aio_transfer.control.connection import FrameConnection
    from aio_transfer.control.frames import GrantReply
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.driver.records import PeerNumber, RegionNumber
    from aio_transfer.driver.transport_path import TransportPath
    from aio_transfer.errors import AioTransferError
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("AnnouncedCounts", "Connection", "Grants", "Imports", "Lifetime", "Liveness", "MessageCredits")


class Liveness(Struct, eq=False):
    """Heartbeat of a connection until the heartbeat thread takes it over.

    :param fd: its socket, or -1
    :param proofs: what attaches a heartbeat connection over TCP; ``None`` where no such connection may come
    """

    fd: int = -1
    proofs: AttachProofs | None = None


class Lifetime(Struct, eq=False):
    """Scopes and milestones of the tasks that serve a connection.

    :param scope: of the task that receives frames
    :param dial_scope: of the task that dials, while it does
    :param ready: set once transfers can be posted, or never will be
    :param fenced: set once the data path has reported all that the peer had sent
    :param ended: set once nothing of the connection is left
    """

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    dial_scope: anyio.CancelScope | None = None
    ready: anyio.Event = field(default_factory=anyio.Event)
    fenced: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)


class AnnouncedCounts(Struct, eq=False):
    """Counters for which one side has announced counts to the other.

    :param by_us: counters of the peer that we will raise
    :param by_peer: counters of ours that the peer will raise
    """

    by_us: set[int] = field(default_factory=set)
    by_peer: set[int] = field(default_factory=set)


class Imports(Struct, eq=False):
    """Regions of the peer that our driver knows, by owner, number and generation.

    :param regions: what the driver calls them
    :param pending: those that are being imported
    """

    regions: dict[tuple[bytes, int, int], RegionNumber] = field(default_factory=dict)
    pending: dict[tuple[bytes, int, int], anyio.Event] = field(default_factory=dict)


class Grants(Struct, eq=False):
    """Access to regions that one side has granted the other.

    :param requests: handlers of the replies to our requests, by request number
    :param regions: our regions that were granted to the peer, which may have mapped them
    """

    requests: dict[int, Callable[[GrantReply, tuple[int, ...]], None]] = field(default_factory=dict)
    regions: set[int] = field(default_factory=set)


class MessageCredits:
    """Window of messages on their way to a peer.

    :ivar unacked: messages that the peer's application has not taken yet
    """

    __slots__ = ("_changed", "unacked")

    def __init__(self) -> None:
        """Begin with nothing on its way."""
        self.unacked = 0
        self._changed: anyio.Event | None = None

    def give_back(self, count: int) -> None:
        """Make room for ``count`` more messages. A hostile peer may give back more than was sent."""
        self.unacked = max(0, self.unacked - count)
        self.wake()

    def wake(self) -> None:
        """Wake every sender that waits, to look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait(self) -> None:
        """Wait until some messages were acknowledged, or the connection ended."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()


class Connection(Struct, eq=False):
    """All that is known of one connection; it is never reused for another.

    :param number: the drivers' name for it
    :param token: name of its session
    :param driver: the one that carries its data, from path setup on
    :param control: from the handshake on
    :param failure: makes the error for what depended on it, where that is not :class:`PeerLostError`
    """

    info: PeerInfo
    number: PeerNumber
    token: bytes
    state: ConnectionState = field(default_factory=ConnectionState)
    driver: OpenDriver | None = None
    control: FrameConnection | None = None
    failure: Callable[[], AioTransferError] | None = None
    lifetime: Lifetime = field(default_factory=Lifetime)
    liveness: Liveness = field(default_factory=Liveness)
    announced: AnnouncedCounts = field(default_factory=AnnouncedCounts)
    imports: Imports = field(default_factory=Imports)
    grants: Grants = field(default_factory=Grants)
    credits: MessageCredits = field(default_factory=MessageCredits)

    @property
    def incarnation(self) -> bytes:
        """Incarnation of the peer."""
        return self.info.incarnation

    @property
    def label(self) -> str:
        """Name of the peer in logs and errors."""
        return self.info.label or self.info.incarnation.hex()[:8]

    @property
    def path(self) -> TransportPath | None:
        """Data path; ``None`` before one is chosen."""
        return None if self.driver is None else self.driver.path

    @property
    def is_up(self) -> bool:
        """Whether transfers can be posted."""
        return self.state.is_up

    @property
    def is_over(self) -> bool:
        """Whether no transfer can be posted any more."""
        return not (self.state.is_up or self.state.is_starting)

    @property
    def reason(self) -> str:
        """Why it ended; empty before."""
        return self.state.reason

    def require_control(self) -> FrameConnection:
        """Return the control connection.

        :raises AioTransferError: there is none
        """
        if self.control is None:
            raise self.lost_error()
        return self.control

    def require_starting(self) -> None:
        """Refuse to go on with the setup of a connection that has ended.

        A frame that arrives in the tick of the end wakes its task before the cancellation does.

        :raises AioTransferError: the reason why it ended
        """
        if not self.state.is_starting:
            raise self.lost_error()

    def lost_error(self, operation: str = "", nbytes: int = 0) -> AioTransferError:
        """Build the error for an operation that depended on the connection."""
        if self.failure is not None:
            return self.failure()
        return PeerLostError(self.label, self.reason or "the connection is over", operation=operation, nbytes=nbytes)

    async def wait_ready(self) -> None:
        """Wait until transfers can be posted.

        :raises AioTransferError: why it could not be connected, or how it was lost
        """
        await self.lifetime.ready.wait()
        if not self.is_up:
            raise self.lost_error()
