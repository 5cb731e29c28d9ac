"""Message stream between two processes: one JSON object per line, over pipes or a socket.

Only small control messages travel here, such as descriptors and requests. The payload goes through the engine.
"""

from __future__ import annotations

import os
from typing import Any, Final

import anyio
import msgspec

from aio_transfer.errors import ProtocolError

__all__ = ("MAX_LINE_NBYTES", "Failed", "JsonLines")

MAX_LINE_NBYTES: Final = 1 << 20
CHUNK_NBYTES: Final = 1 << 16


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The last message of a process that cannot go on."""

    reason: str


_encode = msgspec.json.Encoder().encode


class JsonLines:
    """Message stream over one fd to read and one to write; both stay the caller's to close."""

    def __init__(self, read_fd: int, write_fd: int, peer: str, decoder: msgspec.json.Decoder[Any]) -> None:
        """Create a stream.

        :param peer: name of the other process, for error messages
        :param decoder: of a union of tagged structs: every message that the peer may send
        """
        self._decoder = decoder
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._peer = peer
        self._pending = bytearray()

    def send(self, message: msgspec.Struct) -> None:
        """Write one line. Blocks while the pipe is full, which the few short messages of a run never cause.

        :raises BrokenPipeError: the other process has exited
        """
        line = memoryview(_encode(message) + b"\n")
        while line:
            line = line[os.write(self._write_fd, line) :]

    async def receive(self) -> msgspec.Struct | None:
        """Return the next message, or ``None`` after the other process has closed its end.

        :raises ProtocolError: a line is too long, or is not a message
        :cancellation: no data is lost; a partly received line is kept
        """
        while b"\n" not in self._pending:
            # Not in a worker thread: a thread blocked in read() cannot be cancelled and would keep the process alive.
            await anyio.wait_readable(self._read_fd)
            chunk = os.read(self._read_fd, CHUNK_NBYTES)
            if not chunk:
                return None
            self._pending += chunk
            if len(self._pending) > MAX_LINE_NBYTES:
                raise ProtocolError(self._peer, f"a line of more than {MAX_LINE_NBYTES} B")
        line, _, rest = self._pending.partition(b"\n")
        self._pending = rest
        try:
            message: msgspec.Struct = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ProtocolError(self._peer, f"not a message: {error}") from error
        return message
