"""NIXL: prepared lists of chunks, one request of page numbers and one notification per batch, polled in a loop."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nixl_cu12
import numpy as np
from nixl_cu12 import _bindings as bindings
from nixl_cu12._api import nixl_agent, nixl_agent_config
from workloads import REGION_NBYTES

from .base import WORD_NBYTES, Adapter

if TYPE_CHECKING:
    from workloads import Workload


class Nixl(Adapter):
    async def open(self) -> str:
        backend = self.start.options["backend"]
        thread = self.start.options["progress_thread"] == "yes"
        self.agent = nixl_agent(f"end{self.start.role}", nixl_agent_config(enable_prog_thread=thread, backends=[]))
        try:
            self.agent.create_backend(backend)
        except bindings.nixlNotFoundError:
            plugins = Path(nixl_cu12.__file__).parents[1] / "nixl_cu12.libs/nixl"
            ctypes.CDLL(str(plugins / f"libplugin_{backend}.so"))  # raises the reason, which NIXL does not report
            raise
        self.memory = self.allocate()
        self.words = self.memory.data.cast("q")
        self.address = self.memory.ctypes.data
        self.agent.register_memory([(self.address, REGION_NBYTES, 0, "")], "DRAM")
        return json.dumps([base64.b85encode(self.agent.get_agent_metadata()).decode(), self.address])

    async def connect(self, other: str) -> None:
        metadata, self.remote_address = json.loads(other)
        self.peer = self.agent.add_remote_agent(base64.b85decode(metadata))
        self.notifications = 0
        self.progress_task = asyncio.create_task(self.progress())

    def take_notifications(self) -> None:
        """Take notifications; without a progress thread, this call also makes progress."""
        self.notifications += len(self.agent.get_new_notifs().get(f"end{1 - self.start.role}", ()))

    async def progress(self) -> None:
        """Send the last notification, which a finished transfer does not wait for."""
        while True:
            self.take_notifications()
            await asyncio.sleep(0.001)

    def prepare(self, work: Workload) -> None:
        super().prepare(work)
        self.ours, self.theirs = self.sources.astype(np.int32), self.targets.astype(np.int32)
        offset = WORD_NBYTES if work.test == "latency" else 0
        self.local = self.prepare_chunks("", self.address + offset)
        self.remote = self.prepare_chunks(self.peer, self.remote_address)
        self.word = self.request()

    def prepare_chunks(self, agent: str, address: int) -> Any:
        nbytes = self.work.nbytes
        chunks = np.array([(address + i * nbytes, nbytes, 0) for i in range(self.work.count)], np.uint64)
        return self.agent.prep_xfer_dlist(agent, chunks, "DRAM")

    def request(self) -> Any:
        return self.agent.make_prepped_xfer("WRITE", self.local, self.ours, self.remote, self.theirs, b"batch")

    async def submit(self) -> Any:
        request = self.request()
        self.agent.transfer(request)
        return request

    def poll(self, request: Any) -> None:
        while (state := self.agent.check_xfer_state(request)) == "PROC":
            pass
        if state != "DONE":
            raise RuntimeError(f"NIXL reports {state}")

    async def finish(self, batch: Any) -> None:
        self.poll(batch)
        batch.release()

    async def receive_batches(self, iterations: int) -> None:
        while self.notifications < iterations:
            self.take_notifications()
        self.notifications -= iterations

    async def ping(self, value: int) -> int:
        self.words[1] = value
        self.agent.transfer(self.word)
        self.poll(self.word)
        await self.receive_batches(1)
        return self.words[0]

    async def pong(self) -> None:
        await self.receive_batches(1)
        self.words[1] = self.words[0]
        self.agent.transfer(self.word)
        self.poll(self.word)
