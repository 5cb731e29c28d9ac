"""Mooncake's Transfer Engine: lists of addresses, awaited in its own loop. The target gets no notification."""

from __future__ import annotations

import json
from typing import Any, Final

from mooncake.engine import TransferEngine
from workloads import REGION_NBYTES

from .base import WORD_NBYTES, PollingAdapter

CHUNKS_PER_CALL: Final = 1024
"""Version 0.3.13 returns -1 for 4,096 chunks in one call, and then for smaller calls too."""


class Mooncake(PollingAdapter):
    async def open(self) -> str:
        self.engine = TransferEngine()
        self.require(self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""), "initialize")
        self.memory = self.allocate()
        self.words = self.memory.data.cast("q")
        self.address = self.memory.ctypes.data
        self.require(self.engine.register_memory(self.address, REGION_NBYTES), "register_memory")
        return json.dumps([f"127.0.0.1:{self.engine.get_rpc_port()}", self.address])

    def require(self, code: int, call: str) -> None:
        if code != 0:
            raise RuntimeError(f"Mooncake: {call} returned {code}")

    async def connect(self, other: str) -> None:
        self.peer, self.remote_address = json.loads(other)

    async def submit(self) -> Any:
        """Move the whole batch: more than one call in flight overruns its queue too."""
        nbytes = self.work.nbytes
        ours = (self.sources * nbytes + self.address).tolist()
        theirs = (self.targets * nbytes + self.remote_address).tolist()
        for at in range(0, self.work.count, CHUNKS_PER_CALL):
            there, here = theirs[at : at + CHUNKS_PER_CALL], ours[at : at + CHUNKS_PER_CALL]
            code = self.engine.batch_transfer_sync_write(self.peer, here, there, [nbytes] * len(here))
            self.require(code, f"batch of {len(here)} x {nbytes} B")

    async def finish(self, batch: Any) -> None:
        """Already done by :meth:`submit`."""

    async def receive_batches(self, iterations: int) -> None:
        """Done by the library's threads."""

    def write_word(self, value: int) -> None:
        self.words[1] = value
        address = self.address + WORD_NBYTES
        self.require(
            self.engine.transfer_sync_write(self.peer, address, self.remote_address, WORD_NBYTES), "write of 8 B"
        )

    def poll(self) -> int:
        while (value := self.words[0]) == self.seen:
            pass
        self.seen = value
        return value
