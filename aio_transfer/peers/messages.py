"""Messages between engines: two-sided, bounded, unordered."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import anyio
import anyio.lowlevel
from msgspec import Struct

from aio_transfer.control.frames import MAX_MESSAGE_NBYTES, Message, MessageAck
from aio_transfer.driver.records import TransferId
from aio_transfer.errors import TransferAbortedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.errors import AioTransferError
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("Messages", "Messenger", "ReceivedMessage")

WINDOW: Final = 64
"""Messages a sender may have on their way to one receiver before that one has consumed any."""


class ReceivedMessage(NamedTuple):
    """What a peer sent.

    :param peer: who; give it to ``engine.send`` to answer
    """

    peer: PeerInfo
    payload: bytes


class Messages:
    """Iterates over the messages of all peers. No generator: one that is left half-way needs closing, this does not."""

    __slots__ = ("_messenger",)

    def __init__(self, messenger: Messenger) -> None:
        """Begin with the oldest message that nobody has taken."""
        self._messenger = messenger

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> ReceivedMessage:
        """Wait for a message.

        :raises StopAsyncIteration: the engine is closed
        :cancellation: nothing is taken
        """
        message = await self._messenger.receive()
        if message is None:
            raise StopAsyncIteration
        return message


class _Sending(Struct, eq=False):
    """A message that the transport has not disposed of yet."""

    peer: Connection
    over: anyio.Event
    failure: AioTransferError | None = None


class Messenger:
    """Sends and receives. Small messages go by the transport where it carries any, others by the control connection.

    A message is acknowledged when the application takes it, and a sender with :data:`WINDOW` unacknowledged ones
    waits: so the inbox is bounded by the number of peers.
    """

    def __init__(self, connections: ConnectionManager, next_id: Callable[[], int]) -> None:
        """Begin empty.

        :param next_id: numbers that no transfer of this engine has
        """
        self._connections = connections
        self._next_id = next_id
        self._arrived: deque[tuple[Connection, bytes]] = deque()
        self._arrival = anyio.Event()
        self._closed = False
        self._sending: dict[int, _Sending] = {}

    async def send(self, peer: Connection, payload: bytes) -> None:
        """Send one message over a connection, as soon as its window has room."""
        if len(payload) > MAX_MESSAGE_NBYTES:
            raise UsageError(f"a message of {len(payload)} B: {MAX_MESSAGE_NBYTES} B are possible; write larger data")
        await peer.wait_ready()
        while peer.unacked >= WINDOW:
            await peer.acked_message.wait()
            if not peer.is_up:
                raise peer.lost_error("send", len(payload))
        one, control = peer.driver, peer.control
        if one is None or control is None:
            raise peer.lost_error("send", len(payload))
        peer.unacked += 1
        if 0 < len(payload) <= one.capabilities.max_message_nbytes:
            await self._send_natively(peer, one, payload)
            return
        try:
            try:
                await control.make_room()
            except BaseException:
                self.on_ack(peer, 1)  # it was not queued, so nobody else will
                raise
            control.send_nowait(Message(payload))
            await control.flush()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise peer.lost_error("send", len(payload)) from None

    async def _send_natively(self, peer: Connection, one: OpenDriver, payload: bytes) -> None:
        number = TransferId(self._next_id())
        sending = self._sending[number] = _Sending(peer, anyio.Event())
        try:
            one.driver.send(peer.number, number, payload)
        except BaseException as error:
            self.on_sent(number, str(error))
            raise
        await sending.over.wait()  # if this is cancelled it goes on, and its verdict is still dealt with
        if sending.failure is not None:
            raise peer.lost_error("send", len(payload)) if peer.is_over else sending.failure

    def on_sent(self, number: int, fault: str = "") -> None:
        """Handle a driver's verdict on one message."""
        sending = self._sending.pop(number, None)
        if sending is None:
            return
        if fault:
            sending.failure = TransferAbortedError("send", fault)
            self.on_ack(sending.peer, 1)  # it never arrives, so nobody else will
        sending.over.set()

    def on_message(self, peer: Connection, payload: bytes) -> None:
        """Keep a message until somebody takes it."""
        self._arrived.append((peer, payload))
        self._arrival.set()

    def on_message_frame(self, peer: Connection, frame: Message, _: tuple[int, ...]) -> None:
        """Handle a message that came over the control connection."""
        self.on_message(peer, frame.payload)

    def on_ack_frame(self, peer: Connection, frame: MessageAck, _: tuple[int, ...]) -> None:
        """Handle an acknowledgement."""
        self.on_ack(peer, frame.count)

    def on_down(self, peer: Connection) -> None:
        """Wake the senders that wait for room on a connection that is over."""
        peer.acked_message.set()

    def on_ack(self, peer: Connection, count: int) -> None:
        """Let those go on who wait for the window."""
        peer.unacked = max(0, peer.unacked - count)
        peer.acked_message.set()
        peer.acked_message = anyio.Event()

    async def receive(self) -> ReceivedMessage | None:
        """Wait for a message; ``None`` once the engine is closed. A cancelled wait takes nothing."""
        await anyio.lowlevel.checkpoint()
        while not self._arrived:
            if self._closed:
                return None
            if self._arrival.is_set():  # by a message another iterator has taken
                self._arrival = anyio.Event()
            await self._arrival.wait()
        peer, payload = self._arrived.popleft()
        self._connections.send_frame(peer, MessageAck(1))
        return ReceivedMessage(peer.info, payload)

    def close(self) -> None:
        """End every iteration, and every send that waits for the transport."""
        self._closed = True
        self._arrival.set()
        for number in tuple(self._sending):
            self.on_sent(number, "the engine was closed")
