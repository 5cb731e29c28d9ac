"""Framing of a byte stream, without an event loop: a length in front of each frame, bounds before memory."""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aio_transfer.control.codec import announced_fds, decode, encode
from aio_transfer.control.fd_passing import close_fds, duplicate_fds, send_some
from aio_transfer.control.frames import MAX_FDS_PER_FRAME, MAX_FRAME_NBYTES, MAX_HANDSHAKE_NBYTES
from aio_transfer.errors import BusyError, ProtocolError, ProviderError, UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from aio_transfer.control.frames import Frame

__all__ = ("MAX_QUEUED_NBYTES", "FrameReader", "FrameWriter")

MAX_QUEUED_NBYTES: Final = 16 << 20
_LENGTH: Final = struct.Struct("<I")
_CHUNK_NBYTES: Final = 64 << 10


class FrameReader:
    """Assembles one incoming frame from the pieces that the stream gives.

    It asks for no byte beyond the current frame. So file descriptors that came while a frame was read belong to that
    frame, and after a frame the socket can be given away without losing what follows.
    """

    def __init__(self, peer: str) -> None:
        """Start between two frames."""
        self.peer = peer
        self.limit_nbytes = MAX_HANDSHAKE_NBYTES
        self._buffer = bytearray()
        self._body_nbytes = 0
        self._fds: tuple[int, ...] = ()

    @property
    def wanted_nbytes(self) -> int:
        """Number of bytes that may be read now; memory grows with what has come, never with what a length claims."""
        missing = (self._body_nbytes or _LENGTH.size) - len(self._buffer)
        return min(missing, _CHUNK_NBYTES)

    @property
    def is_empty(self) -> bool:
        """Whether the stream stands between two frames."""
        return not (self._buffer or self._body_nbytes or self._fds)

    def feed(self, data: bytes, fds: tuple[int, ...] = ()) -> tuple[Frame, tuple[int, ...]] | None:
        """Add bytes that were read, and the file descriptors that came with them.

        :param data: 1 … ``wanted_nbytes`` bytes
        :returns: a frame and as many descriptors as it announced (now the caller's), once it is whole
        :raises ProtocolError: not a frame; its descriptors are closed
        """
        if fds:
            self._keep(fds)
        self._buffer += data
        try:
            if self._body_nbytes:
                return self._finish() if len(self._buffer) == self._body_nbytes else None
            if len(self._buffer) == _LENGTH.size:
                self._begin()
        except ProtocolError:
            self.discard()
            raise
        return None

    def _keep(self, fds: tuple[int, ...]) -> None:
        """Hold descriptors until their frame is whole; no frame is allowed more than its share of our table."""
        room = MAX_FDS_PER_FRAME - len(self._fds)
        self._fds += fds[:room]
        close_fds(fds[room:])

    def _begin(self) -> None:
        (nbytes,) = _LENGTH.unpack(self._buffer)
        if not 0 < nbytes <= self.limit_nbytes:
            raise ProtocolError(self.peer, f"a frame of {nbytes} B, where 1 … {self.limit_nbytes} B are allowed")
        self._body_nbytes = nbytes
        self._buffer.clear()

    def _finish(self) -> tuple[Frame, tuple[int, ...]]:
        frame = decode(self._buffer, peer=self.peer)
        count = announced_fds(frame)
        if len(self._fds) < count:
            name = type(frame).__name__
            raise ProtocolError(self.peer, f"{name} announced {count} file descriptors and {len(self._fds)} came")
        fds, surplus = self._fds[:count], self._fds[count:]
        self._fds = surplus
        self.discard()
        return frame, fds

    def discard(self) -> None:
        """Drop the incomplete frame and close the descriptors that came with it."""
        if self._fds:
            close_fds(self._fds)
            self._fds = ()
        self._buffer = bytearray()
        self._body_nbytes = 0


class _Outgoing(Struct, eq=False):
    """Unsent rest of one frame. ``fds`` are our duplicates, and leave with its first byte."""

    rest: memoryview
    fds: tuple[int, ...]


class FrameWriter:
    """Queues frames until the stream has taken every byte of them, in order."""

    def __init__(self, peer: str, *, can_pass_fds: bool) -> None:
        """Start with nothing to send."""
        self.peer = peer
        self.pushed_nbytes = 0
        self.sent_nbytes = 0
        self._can_pass_fds = can_pass_fds
        self._queue: deque[_Outgoing] = deque()

    @property
    def queued_nbytes(self) -> int:
        """Number of bytes that wait for room in the stream."""
        return self.pushed_nbytes - self.sent_nbytes

    @property
    def has_room(self) -> bool:
        """Whether a frame of any size can be pushed."""
        return self.queued_nbytes + _LENGTH.size + MAX_FRAME_NBYTES <= MAX_QUEUED_NBYTES

    def push(self, frame: Frame, fds: Sequence[int] = ()) -> None:
        """Queue a frame. ``fds`` stay the caller's: duplicates of them travel.

        :raises UsageError: a field is outside its bound, or ``fds`` do not fit the frame or the connection
        :raises BusyError: too much is queued already; nothing was added
        :raises ProviderError: a descriptor could not be duplicated; nothing was added
        """
        self._check_fds(frame, fds)
        if not self.has_room:
            raise BusyError(f"the outgoing queue to {self.peer} ({self.queued_nbytes} B)", "filling")
        body = encode(frame)
        try:
            duplicates = duplicate_fds(fds)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "")
            raise ProviderError("dup", peer=self.peer, code=error.errno or 0, code_name=name) from error
        self._queue.append(_Outgoing(memoryview(_LENGTH.pack(len(body)) + body), duplicates))
        self.pushed_nbytes += _LENGTH.size + len(body)

    def _check_fds(self, frame: Frame, fds: Sequence[int]) -> None:
        if len(fds) != announced_fds(frame):
            msg = f"{type(frame).__name__} announces {announced_fds(frame)} file descriptors and {len(fds)} were given"
            raise UsageError(msg)
        if fds and not self._can_pass_fds:
            msg = f"the connection to {self.peer} is not AF_UNIX and cannot pass file descriptors"
            raise UsageError(msg)

    def write(self, sock: socket.socket) -> None:
        """Send until nothing is left or the stream takes no more.

        :raises OSError: the stream is broken
        """
        while self._queue:
            head = self._queue[0]
            try:
                sent = send_some(sock, head.rest, head.fds)
            except BlockingIOError:
                return
            self._advance(head, sent)

    def _advance(self, head: _Outgoing, sent: int) -> None:
        if head.fds:
            close_fds(head.fds)
            head.fds = ()
        head.rest = head.rest[sent:]
        self.sent_nbytes += sent
        if not head.rest:
            self._queue.popleft()

    def discard(self) -> None:
        """Drop the queue, and close the duplicates in it."""
        for outgoing in self._queue:
            close_fds(outgoing.fds)
        self._queue.clear()
        self.sent_nbytes = self.pushed_nbytes
