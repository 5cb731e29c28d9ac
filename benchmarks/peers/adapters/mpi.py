"""mpi4py on MPICH: puts into a window, with an indexed type for small pages, or stores into a shared window."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from mpi4py import MPI
from workloads import REGION_NBYTES

from .base import INITIATOR, TARGET, WORD_NBYTES, PollingAdapter

TAG: Final = 7
SINGLE_PUT_NBYTES: Final = 32 << 10
"""Larger pages are put one by one: an indexed type was 13 times slower over TCP with 64 KiB, and faster with 4 KiB."""


class Mpi(PollingAdapter):
    async def open(self) -> str:
        self.comm = MPI.COMM_WORLD
        self.peer_rank = 1 - self.start.role
        self.shared = self.start.options["window"] == "shared"
        self.window = self.create_window()
        self.window.Lock_all()
        self.memory = np.frombuffer(self.window.tomemory(), np.uint8)
        self.memory[:] = 0
        self.words = self.memory.data.cast("q")
        return ""

    def create_window(self) -> Any:
        if self.shared:
            return MPI.Win.Allocate_shared(REGION_NBYTES, comm=self.comm)
        if self.start.path == "foreign":
            return MPI.Win.Create(self.allocate(), comm=self.comm)
        return MPI.Win.Allocate(REGION_NBYTES, comm=self.comm)

    async def connect(self, other: str) -> None:  # noqa: ARG002 - MPI has connected them
        if self.shared:
            memory, _ = self.window.Shared_query(self.peer_rank)
            self.target_memory = np.frombuffer(memory, np.uint8)
            self.target_words = self.target_memory.data.cast("q")

    def indexed(self, chunks: Any) -> Any:
        return MPI.BYTE.Create_hindexed_block(self.work.nbytes, (chunks * self.work.nbytes).tolist()).Commit()

    async def submit(self) -> Any:
        if self.shared:
            self.copy_into(self.target_memory)
        elif self.work.count == 1:
            self.window.Put([self.memory, self.work.nbytes, MPI.BYTE], TARGET, [0, self.work.nbytes, MPI.BYTE])
        elif self.work.nbytes >= SINGLE_PUT_NBYTES:
            nbytes = self.work.nbytes
            for target, source in zip(self.targets.tolist(), self.sources.tolist(), strict=True):
                page = self.memory[source * nbytes : (source + 1) * nbytes]
                self.window.Put([page, nbytes, MPI.BYTE], TARGET, [target * nbytes, nbytes, MPI.BYTE])
        else:
            ours, theirs = self.indexed(self.sources), self.indexed(self.targets)
            self.window.Put([self.memory, 1, ours], TARGET, [0, 1, theirs])
            ours.Free()
            theirs.Free()

    async def finish(self, batch: Any) -> None:  # noqa: ARG002 - MPI cannot wait for one batch alone
        self.window.Flush(TARGET)
        self.comm.Send([None, 0, MPI.BYTE], TARGET, TAG)

    async def receive_batches(self, iterations: int) -> None:
        for _ in range(iterations):
            self.comm.Recv([None, 0, MPI.BYTE], INITIATOR, TAG)
        self.window.Sync()

    def write_word(self, value: int) -> None:
        if self.shared:
            self.target_words[0] = value
            self.window.Sync()
            return
        self.words[1] = value
        self.window.Put([self.memory[WORD_NBYTES:], WORD_NBYTES, MPI.BYTE], self.peer_rank, [0, WORD_NBYTES, MPI.BYTE])
        self.window.Flush(self.peer_rank)

    def poll(self) -> int:
        while (value := self.words[0]) == self.seen:
            if not self.shared:
                self.comm.Iprobe()  # makes progress, without which nothing may arrive over a network
        self.window.Sync()
        self.seen = value
        return value

    async def close(self) -> None:
        self.window.Unlock_all()
        self.window.Free()
        MPI.Finalize()
