"""pyzmq: a pair of asyncio sockets, messages not copied where it can avoid it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zmq
import zmq.asyncio

from .base import WORD, TwoSided

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PyZmq(TwoSided):
    async def open(self) -> str:
        self.memory = self.own_memory()
        self.socket = zmq.asyncio.Context().socket(zmq.PAIR)
        if self.initiates:
            return ""
        self.socket.bind("tcp://127.0.0.1:*" if self.start.path == "tcp" else f"ipc://{self.start.folder}/zmq")
        return str(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))

    async def join(self, other: str) -> None:
        if self.initiates:
            self.socket.connect(other)

    async def send(self, data: NDArray[np.uint8]) -> None:
        # Small messages are copied: keeping track of one costs more.
        await self.socket.send(data, copy=data.nbytes <= WORD)

    async def receive(self, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if into.nbytes <= WORD:
            return np.frombuffer(await self.socket.recv(), np.uint8)
        return np.frombuffer((await self.socket.recv(copy=False)).buffer, np.uint8)
