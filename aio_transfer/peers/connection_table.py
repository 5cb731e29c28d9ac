"""Connection table: connections by incarnation and by number, and the reasons of those that ended."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from aio_transfer.driver.records import PeerNumber
from aio_transfer.peers.connection import Connection

if TYPE_CHECKING:
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("ConnectionTable",)

_MAX_REASONS: Final = 1024


class ConnectionTable:
    """Connections of one engine.

    A connection that ended is never revived: the next one to that peer gets a new number, so no event of the old one
    can be taken for an event of the new one.

    :ivar current: connections by incarnation, connecting or connected
    :ivar reasons: why former ones ended, by incarnation; the latest 1,024
    """

    def __init__(self) -> None:
        """Begin without connections."""
        self.current: dict[bytes, Connection] = {}
        self.reasons: dict[bytes, str] = {}
        self._by_number: dict[int, Connection] = {}
        self._numbers = itertools.count(1)

    def add(self, info: PeerInfo, token: bytes) -> Connection:
        """Make the record of a new connection."""
        peer = Connection(info, PeerNumber(next(self._numbers)), token)
        self.current[info.incarnation] = peer
        self._by_number[peer.number] = peer
        return peer

    def retire(self, peer: Connection) -> None:
        """Make room for another connection to that peer; this one is still found by its number."""
        if self.current.get(peer.incarnation) is peer:
            del self.current[peer.incarnation]
        self.reasons[peer.incarnation] = peer.reason
        while len(self.reasons) > _MAX_REASONS:
            del self.reasons[next(iter(self.reasons))]

    def remove(self, peer: Connection) -> None:
        """Remove a connection of which nothing is left."""
        del self._by_number[peer.number]

    def find(self, number: int) -> Connection | None:
        """Return the connection with this number, also one that is ending."""
        return self._by_number.get(number)

    def all(self) -> tuple[Connection, ...]:
        """Return every connection, also those that are ending."""
        return tuple(self._by_number.values())
