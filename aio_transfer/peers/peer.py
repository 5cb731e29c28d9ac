"""Public handle of a peer: identity, state and path of the connection to another engine."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from aio_transfer.peers.connection_state import ConnectionStage

if TYPE_CHECKING:
    from aio_transfer.driver.transport_path import TransportPath
    from aio_transfer.peers.connection import Connection

__all__ = ("Peer", "PeerState")


class PeerState(enum.Enum):
    """State of the connection to a peer."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LEAVING = "leaving"
    """We sent a goodbye."""
    LEFT = "left"
    """The connection ended with a goodbye."""
    LOST = "lost"


_STATES: Final = {
    ConnectionStage.DIALING: PeerState.CONNECTING,
    ConnectionStage.JOINING: PeerState.CONNECTING,
    ConnectionStage.PATH_JOINED: PeerState.CONNECTING,
    ConnectionStage.HEARTBEAT_ATTACHED: PeerState.CONNECTING,
    ConnectionStage.CONNECTED: PeerState.CONNECTED,
    ConnectionStage.LEAVING: PeerState.LEAVING,
    ConnectionStage.LEFT: PeerState.LEFT,
    ConnectionStage.LOST: PeerState.LOST,
}


class Peer:
    """Another engine, as ``engine.connect`` returns it.

    :ivar info: its identity and address
    """

    __slots__ = ("_connection", "info")

    def __init__(self, connection: Connection) -> None:
        """Show a connection to the application."""
        self._connection = connection
        self.info = connection.info

    @property
    def label(self) -> str:
        """Name of the peer in logs and errors: ``host:pid`` by default."""
        return self.info.label

    @property
    def state(self) -> PeerState:
        """State of the connection."""
        return _STATES[self._connection.state.stage]

    @property
    def path(self) -> TransportPath | None:
        """Data path to the peer; ``None`` before the connection is made."""
        return self._connection.path

    def __repr__(self) -> str:
        """Show label and state."""
        return f"<Peer {self.label} {self.state.value}>"
