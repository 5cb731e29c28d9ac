"""No library: asyncio with a plain socket, and optionally with shared memory of ``multiprocessing``."""

from __future__ import annotations

import asyncio
import socket
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any

import numpy as np
from workloads import REGION_NBYTES

from .base import WORD_NBYTES, MessagingAdapter

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SocketAdapter(MessagingAdapter):
    async def open(self) -> str:
        self.memory = self.allocate()
        return self.listen()

    def listen(self) -> str:
        self.loop = asyncio.get_running_loop()
        tcp = self.start.path == "tcp"
        self.socket = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        self.socket.setblocking(False)  # noqa: FBT003
        if self.is_initiator:
            return ""
        self.socket.bind(("127.0.0.1", 0) if tcp else f"{self.start.folder}/socket")
        self.socket.listen()
        return str(self.socket.getsockname()[1] if tcp else self.socket.getsockname())

    async def connect(self, other: str) -> None:
        tcp = self.start.path == "tcp"
        if self.is_initiator:
            await self.loop.sock_connect(self.socket, ("127.0.0.1", int(other)) if tcp else other)
        else:
            self.socket, _ = await self.loop.sock_accept(self.socket)
        if tcp:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: NDArray[np.uint8]) -> None:
        await self.loop.sock_sendall(self.socket, data.data)

    async def receive(self, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        remaining = into.data
        while remaining:
            nbytes = await self.loop.sock_recv_into(self.socket, remaining)
            if nbytes == 0:
                raise ConnectionError("the other end is closed")
            remaining = remaining[nbytes:]
        return into


class SharedMemoryAdapter(SocketAdapter):
    """Copies into the target's memory, and sends a word through the socket for each batch."""

    async def open(self) -> str:
        if self.is_initiator:
            self.memory = self.allocate()
            return self.listen()
        self.block = SharedMemory(create=True, size=REGION_NBYTES)
        self.memory = np.ndarray(REGION_NBYTES, np.uint8, self.block.buf)
        self.memory[:] = 0
        return f"{self.block.name} {self.listen()}"

    async def connect(self, other: str) -> None:
        if self.is_initiator:
            name, other = other.split()
            self.block = SharedMemory(name)
            # Python before 3.13 would remove an attached block when this process exits.
            resource_tracker.unregister(f"/{name}", "shared_memory")
            self.target_memory = np.ndarray(REGION_NBYTES, np.uint8, self.block.buf)
        await super().connect(other)

    async def submit(self) -> Any:
        self.copy_into(self.target_memory)
        await self.send(self.word)

    async def finish(self, batch: Any) -> None:
        """Already done by :meth:`submit`."""

    async def receive_batches(self, iterations: int) -> None:
        into = np.zeros(WORD_NBYTES, np.uint8)
        for _ in range(iterations):
            await self.receive(into)

    async def close(self) -> None:
        if not self.is_initiator:
            self.block.unlink()
