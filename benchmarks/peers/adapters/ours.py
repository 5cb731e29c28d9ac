"""aio-transfer, in the environment that runs the comparison."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from workloads import REGION_NBYTES

from aio_transfer import RemoteRegion, Transfer, TransferEngine

from .base import WORD_NBYTES, Adapter

if TYPE_CHECKING:
    from workloads import Workload


class Ours(Adapter):
    async def open(self) -> str:
        backend = self.start.options["backend"]
        options = {name: value for name, value in self.start.options.items() if name != "backend"}
        self.engine = await TransferEngine(backend=backend, options={backend: options}).__aenter__()
        own = self.start.path == "shm"
        self.memory = self.engine.allocate(REGION_NBYTES) if own else self.allocate()
        self.memory[:] = 0
        self.words = self.memory.data.cast("q")
        self.region = await self.engine.register(self.memory)
        self.counter = self.engine.counter()
        return base64.b85encode(bytes(self.region.descriptor(self.counter))).decode()

    async def connect(self, other: str) -> None:
        self.remote = RemoteRegion.from_bytes(base64.b85decode(other))
        await self.engine.connect(self.remote.peer)

    def prepare(self, work: Workload) -> None:
        super().prepare(work)
        self.word = self.region[WORD_NBYTES : 2 * WORD_NBYTES], self.remote[:WORD_NBYTES]

    async def submit(self) -> Transfer:
        nbytes = self.work.nbytes
        if self.work.count == 1:
            return self.engine.submit_write(self.region[:nbytes], self.remote[:nbytes])
        ours, theirs = self.region.pages(self.sources, nbytes), self.remote.pages(self.targets, nbytes)
        return self.engine.submit_write_pages(ours, theirs)

    async def finish(self, batch: Any) -> None:
        await batch

    async def receive_batches(self, iterations: int) -> None:
        await self.counter.wait(iterations * self.work.count)

    async def ping(self, value: int) -> int:
        self.words[1] = value
        await self.engine.write(*self.word)
        await self.counter.wait(1)
        return self.words[0]

    async def pong(self) -> None:
        await self.counter.wait(1)
        self.words[1] = self.words[0]
        await self.engine.write(*self.word)

    async def close(self) -> None:
        await self.engine.aclose()
