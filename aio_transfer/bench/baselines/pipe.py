"""A raw pipe between two event loops: the floor of everything that wakes one."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import Final

import msgspec

from aio_transfer.bench.workers.worker_state import Nothing, Place
from aio_transfer.runtime.event_loop import current_event_loop

__all__ = ("Pipe", "Port", "dial_port", "loop_pipe", "open_port", "take_port")

DIAL_S: Final = 5.0


def loop_pipe(place: Place) -> Pipe:
    """Return the raw pipe to the other process, watched by this process's event loop."""
    if "pipe" not in place.kept:
        # O_RDWR: neither blocks until the other side is there, nor reads an end when it leaves.
        ends = (os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) for path in place.start.pipes)
        place.kept["pipe"] = Pipe(*ends)
    pipe: Pipe = place.kept["pipe"]
    return pipe


class Port(msgspec.Struct, frozen=True):
    """Where a process listens for a raw connection.

    :param number: 0 asks for any
    """

    host: str
    number: int = 0


async def open_port(place: Place, ask: Port) -> Port:
    """Listen; the step after this one is the other side's :func:`dial_port`, and then our :func:`take_port`."""
    family = socket.AF_INET6 if ":" in ask.host else socket.AF_INET
    listener = place.kept["port"] = socket.create_server((ask.host, ask.number), family=family)
    return Port(ask.host, listener.getsockname()[1])


async def dial_port(place: Place, ask: Port) -> Nothing:
    """Connect, and let the connection stand for the pipe."""
    place.kept["pipe"] = _over(socket.create_connection((ask.host, ask.number), DIAL_S))
    return Nothing()


async def take_port(place: Place, ask: Nothing) -> Nothing:
    """Take what :func:`dial_port` has made."""
    listener: socket.socket = place.kept.pop("port")
    with listener:
        place.kept["pipe"] = _over(listener.accept()[0])
    return ask


def _over(connection: socket.socket) -> Pipe:
    connection.setblocking(False)  # noqa: FBT003
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fd = connection.detach()
    return Pipe(fd, fd)


class Pipe:
    """Two FIFOs, or a TCP connection, 8 bytes at a time: what an awaited round trip costs without us.

    Watched once, as the engine watches its own fd, so that the difference is ours and not the event loop's.
    """

    def __init__(self, inward: int, outward: int) -> None:
        """Take two fds over, the inward one non-blocking."""
        self._in, self._out = inward, outward
        self._loop = current_event_loop()
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
        for fd in {self._in, self._out}:  # one, of a connection
            os.close(fd)
