"""Mooncake's Transfer Engine: lists of addresses, waited for in its own loop. It tells the target nothing."""

from __future__ import annotations

import json
from typing import Any, Final

from mooncake.engine import TransferEngine
from works import REGION_NBYTES

from .base import WORD, Polled

PIECES: Final = 1024
"""Chunks per call: 0.3.13 answers 4,096 at once with -1, and then refuses smaller ones too."""


class Mooncake(Polled):
    async def open(self) -> str:
        self.engine = TransferEngine()
        self.demand(self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""), "initialize")
        self.memory = self.own_memory()
        self.words = self.memory.data.cast("q")
        self.address = self.memory.ctypes.data
        self.demand(self.engine.register_memory(self.address, REGION_NBYTES), "register_memory")
        return json.dumps([f"127.0.0.1:{self.engine.get_rpc_port()}", self.address])

    def demand(self, code: int, call: str) -> None:
        if code != 0:
            raise RuntimeError(f"Mooncake: {call} returned {code}")

    async def join(self, other: str) -> None:
        self.peer, self.remote_address = json.loads(other)

    async def submit(self) -> Any:
        """Move the whole batch: more than one call under way overruns its queue as well."""
        nbytes = self.work.nbytes
        ours = (self.sources * nbytes + self.address).tolist()
        theirs = (self.targets * nbytes + self.remote_address).tolist()
        for at in range(0, self.work.count, PIECES):
            there, here = theirs[at : at + PIECES], ours[at : at + PIECES]
            code = self.engine.batch_transfer_sync_write(self.peer, here, there, [nbytes] * len(here))
            self.demand(code, f"batch of {len(here)} x {nbytes} B")

    async def finish(self, batch: Any) -> None:
        """It is."""

    async def attend(self, rounds: int) -> None:
        """Nothing to do: its threads receive."""

    def write_word(self, value: int) -> None:
        self.words[1] = value
        address = self.address + WORD
        self.demand(self.engine.transfer_sync_write(self.peer, address, self.remote_address, WORD), "write of 8 B")

    def poll(self) -> int:
        while (value := self.words[0]) == self.seen:
            pass
        self.seen = value
        return value
