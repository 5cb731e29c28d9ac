"""No library: asyncio with a plain socket, and with memory of ``multiprocessing`` for the payload."""

from __future__ import annotations

import asyncio
import socket
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any

import numpy as np
from works import REGION_NBYTES

from .base import WORD, TwoSided

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sockets(TwoSided):
    async def open(self) -> str:
        self.memory = self.own_memory()
        return self.listen()

    def listen(self) -> str:
        self.loop = asyncio.get_running_loop()
        tcp = self.start.path == "tcp"
        self.socket = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        self.socket.setblocking(False)  # noqa: FBT003
        if self.initiates:
            return ""
        self.socket.bind(("127.0.0.1", 0) if tcp else f"{self.start.folder}/socket")
        self.socket.listen()
        return str(self.socket.getsockname()[1] if tcp else self.socket.getsockname())

    async def join(self, other: str) -> None:
        tcp = self.start.path == "tcp"
        if self.initiates:
            await self.loop.sock_connect(self.socket, ("127.0.0.1", int(other)) if tcp else other)
        else:
            self.socket, _ = await self.loop.sock_accept(self.socket)
        if tcp:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: NDArray[np.uint8]) -> None:
        await self.loop.sock_sendall(self.socket, data.data)

    async def receive(self, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rest = into.data
        while rest:
            nbytes = await self.loop.sock_recv_into(self.socket, rest)
            if nbytes == 0:
                raise ConnectionError("the other end is gone")
            rest = rest[nbytes:]
        return into


class Shared(Sockets):
    """Copies into the target's memory, and a word through the socket for each batch."""

    async def open(self) -> str:
        if self.initiates:
            self.memory = self.own_memory()
            return self.listen()
        self.block = SharedMemory(create=True, size=REGION_NBYTES)
        self.memory = np.ndarray(REGION_NBYTES, np.uint8, self.block.buf)
        self.memory[:] = 0
        return f"{self.block.name} {self.listen()}"

    async def join(self, other: str) -> None:
        if self.initiates:
            name, other = other.split()
            self.block = SharedMemory(name)
            # Attached is not owned, but Python before 3.13 would remove it with this process.
            resource_tracker.unregister(f"/{name}", "shared_memory")
            self.there = np.ndarray(REGION_NBYTES, np.uint8, self.block.buf)
        await super().join(other)

    async def submit(self) -> Any:
        self.copy_into(self.there)
        await self.send(self.word)

    async def finish(self, batch: Any) -> None:
        """It is: the copy is made by the submit itself."""

    async def attend(self, rounds: int) -> None:
        into = np.zeros(WORD, np.uint8)
        for _ in range(rounds):
            await self.receive(into)

    async def close(self) -> None:
        if not self.initiates:
            self.block.unlink()
