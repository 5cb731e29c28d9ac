"""Messages between engines: two-sided, bounded, unordered."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control import PeerInfo
    from .peers import Connection

__all__ = ("Inbox", "ReceivedMessage")

WINDOW: Final = 64
"""Messages a sender may have on their way to one receiver before that one has consumed any."""


class ReceivedMessage(NamedTuple):
    """What a peer sent.

    :param peer: who; give it to ``engine.send`` to answer
    """

    peer: PeerInfo
    payload: bytes


class Inbox:
    """Messages that have arrived and nobody has taken.

    Bounded by the senders' windows: a message is acknowledged when it is taken, and a peer that has
    :data:`WINDOW` unacknowledged ones waits.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._arrived: deque[tuple[Connection, bytes]] = deque()
        self._event = anyio.Event()
        self._closed = False

    def put(self, peer: Connection, payload: bytes) -> None:
        """Add a message."""
        self._arrived.append((peer, payload))
        self._event.set()

    def close(self) -> None:
        """End the iteration of those who wait."""
        self._closed = True
        self._event.set()

    async def get(self, acknowledge: Callable[[Connection], None]) -> ReceivedMessage | None:
        """Wait for a message; ``None`` once the engine closes.

        :cancellation: nothing is taken
        """
        await anyio.lowlevel.checkpoint()
        while not self._arrived:
            if self._closed:
                return None
            self._event = anyio.Event()
            await self._event.wait()
        peer, payload = self._arrived.popleft()
        acknowledge(peer)
        return ReceivedMessage(peer.info, payload)
