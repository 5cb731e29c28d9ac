"""Messages between a program's processes: one JSON object per line, over the pipes of a child process.

What must travel out of band is little: who offers which memory, and that a request begins. The payload itself goes
through the engine.
"""

from __future__ import annotations

import os
from typing import Any, Final

import anyio
import msgspec

from aio_transfer.errors import ProtocolError

__all__ = (
    "Failed",
    "Lines",
)

MAX_LINE_NBYTES: Final = 1 << 20
CHUNK_NBYTES: Final = 1 << 16


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Prefill to decode: I give up."""

    reason: str


_encode = msgspec.json.Encoder().encode


class Lines:
    """Both ends' view of the pipes; owns neither fd."""

    def __init__(self, read_fd: int, write_fd: int, peer: str, decoder: msgspec.json.Decoder[Any]) -> None:
        """Take the ends of two pipes.

        :param peer: for error messages
        :param decoder: of a union of tagged structs, all that the peer may say
        """
        self._decoder = decoder
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._peer = peer
        self._pending = bytearray()

    def send(self, message: msgspec.Struct) -> None:
        """Write one line. It blocks while the pipe is full, which the few short lines of a run never make it.

        :raises BrokenPipeError: the other process is gone
        """
        line = memoryview(_encode(message) + b"\n")
        while line:
            line = line[os.write(self._write_fd, line) :]

    async def receive(self) -> msgspec.Struct | None:
        """Return the next message, or ``None`` once the other process has closed its end.

        :raises ProtocolError: a line is too long, or not a message
        :cancellation: nothing is lost; a line that has begun is kept
        """
        while b"\n" not in self._pending:
            # Not a thread that reads: one that waits for a line cannot be cancelled, and would keep the process alive.
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
