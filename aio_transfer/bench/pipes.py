"""A raw pipe between two event loops: the floor of everything that wakes one."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from aio_transfer.loops import current_loop

if TYPE_CHECKING:
    from aio_transfer.bench.place import Place

__all__ = ("Pipe", "loop_pipe")


def loop_pipe(place: Place) -> Pipe:
    """Return the raw pipe to the other process, watched by this process's event loop."""
    if "pipe" not in place.kept:
        place.kept["pipe"] = Pipe(*place.start.pipes)
    pipe: Pipe = place.kept["pipe"]
    return pipe


class Pipe:
    """Two FIFOs, 8 bytes at a time: what an awaited round trip costs without us.

    Watched once, as the engine watches its own fd, so that the difference is ours and not the event loop's.
    """

    def __init__(self, inward: str, outward: str) -> None:
        """Open both ends."""
        # O_RDWR: neither blocks until the other side is there, nor reads an end when it leaves.
        self._in, self._out = (os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) for path in (inward, outward))
        self._loop = current_loop()
        self._loop.watch(self._in, self._on_ready)
        self._waiter = self._loop.waiter()
        self._arrived: deque[bytes] = deque()

    def _on_ready(self) -> None:
        self._arrived.append(os.read(self._in, 8))
        self._waiter.wake()

    def send(self, message: bytes) -> None:
        """Write 8 bytes."""
        os.write(self._out, message)

    async def receive(self) -> bytes:
        """Wait for 8 bytes."""
        while not self._arrived:
            await self._waiter.wait()
            self._waiter = self._loop.waiter()
        return self._arrived.popleft()

    def close(self) -> None:
        """Stop watching, and close both."""
        self._loop.unwatch(self._in)
        os.close(self._in)
        os.close(self._out)
