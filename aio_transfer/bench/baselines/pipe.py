"""Pipe between two event loops, watched by both: the baseline of every operation that wakes an event loop."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import Final

import msgspec

from aio_transfer.bench.workers.worker_state import Empty, WorkerState
from aio_transfer.runtime.event_loop import current_event_loop

__all__ = ("LoopPipe", "TcpEndpoint", "accept_tcp", "connect_tcp", "listen_tcp", "pipe_of")

CONNECT_TIMEOUT_S: Final = 5.0


def pipe_of(state: WorkerState) -> LoopPipe:
    """Return the pipe to the other worker; it is opened once."""
    if "pipe" not in state.resources:
        # O_RDWR: open() does not block until the other side is there, and no end-of-file comes when it exits.
        ends = (os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) for path in state.start.pipes)
        state.resources["pipe"] = LoopPipe(*ends)
    pipe: LoopPipe = state.resources["pipe"]
    return pipe


class TcpEndpoint(msgspec.Struct, frozen=True):
    """Address to listen on, or to connect to.

    :param port: 0 takes any free one
    """

    host: str
    port: int = 0


async def listen_tcp(state: WorkerState, request: TcpEndpoint) -> TcpEndpoint:
    """Listen: first of three steps, then :func:`connect_tcp` at the other worker and :func:`accept_tcp` here."""
    family = socket.AF_INET6 if ":" in request.host else socket.AF_INET
    listener = state.resources["listener"] = socket.create_server((request.host, request.port), family=family)
    return TcpEndpoint(request.host, listener.getsockname()[1])


async def connect_tcp(state: WorkerState, request: TcpEndpoint) -> Empty:
    """Connect, and use the connection as the pipe."""
    connection = socket.create_connection((request.host, request.port), CONNECT_TIMEOUT_S)
    state.resources["pipe"] = _pipe_over(connection)
    return Empty()


async def accept_tcp(state: WorkerState, _request: Empty) -> Empty:
    """Accept the connection of :func:`connect_tcp`, and use it as the pipe."""
    listener: socket.socket = state.resources.pop("listener")
    with listener:
        state.resources["pipe"] = _pipe_over(listener.accept()[0])
    return Empty()


def _pipe_over(connection: socket.socket) -> LoopPipe:
    connection.settimeout(0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fd = connection.detach()
    return LoopPipe(fd, fd)


class LoopPipe:
    """Two FIFOs, or one TCP connection, that carry 8 bytes at a time and wake the event loop.

    The event loop watches the fd permanently, as it does the engine's fd, so that both pay the same for it.
    """

    def __init__(self, inward: int, outward: int) -> None:
        """Take ownership of two fds; the inward one is non-blocking."""
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
        """Stop watching, and close both fds."""
        self._loop.unwatch(self._in)
        for fd in {self._in, self._out}:  # the same fd twice if it is a connection
            os.close(fd)
