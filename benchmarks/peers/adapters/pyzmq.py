"""pyzmq: a pair of asyncio sockets, with zero-copy messages where possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zmq
import zmq.asyncio

from .base import WORD_NBYTES, MessagingAdapter

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PyZmq(MessagingAdapter):
    async def open(self) -> str:
        self.memory = self.allocate()
        self.socket = zmq.asyncio.Context().socket(zmq.PAIR)
        if self.is_initiator:
            return ""
        self.socket.bind("tcp://127.0.0.1:*" if self.start.path == "tcp" else f"ipc://{self.start.folder}/zmq")
        return str(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))

    async def connect(self, other: str) -> None:
        if self.is_initiator:
            self.socket.connect(other)

    async def send(self, data: NDArray[np.uint8]) -> None:
        # Small messages are copied, which is cheaper than tracking them.
        await self.socket.send(data, copy=data.nbytes <= WORD_NBYTES)

    async def receive(self, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if into.nbytes <= WORD_NBYTES:
            return np.frombuffer(await self.socket.recv(), np.uint8)
        return np.frombuffer((await self.socket.recv(copy=False)).buffer, np.uint8)
