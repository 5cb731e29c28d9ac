"""mpi4py on MPICH: puts into a window (an indexed type for small pages), or stores into one that is shared."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from mpi4py import MPI
from works import REGION_NBYTES

from .base import INITIATOR, TARGET, WORD, Polled

TAG: Final = 7
SINGLE_NBYTES: Final = 32 << 10
"""Pages from here on go one by one: an indexed type was 13 times slower over tcp for 64 KiB, and faster for 4."""


class Mpi(Polled):
    async def open(self) -> str:
        self.comm = MPI.COMM_WORLD
        self.other = 1 - self.start.role
        self.shared = self.start.options["window"] == "shared"
        self.window = self.take_window()
        self.window.Lock_all()
        self.memory = np.frombuffer(self.window.tomemory(), np.uint8)
        self.memory[:] = 0
        self.words = self.memory.data.cast("q")
        return ""

    def take_window(self) -> Any:
        if self.shared:
            return MPI.Win.Allocate_shared(REGION_NBYTES, comm=self.comm)
        if self.start.path == "foreign":
            return MPI.Win.Create(self.own_memory(), comm=self.comm)
        return MPI.Win.Allocate(REGION_NBYTES, comm=self.comm)

    async def join(self, other: str) -> None:  # noqa: ARG002 - MPI has introduced them
        if self.shared:
            there, _ = self.window.Shared_query(self.other)
            self.there = np.frombuffer(there, np.uint8)
            self.their_words = self.there.data.cast("q")

    def indexed(self, chunks: Any) -> Any:
        return MPI.BYTE.Create_hindexed_block(self.work.nbytes, (chunks * self.work.nbytes).tolist()).Commit()

    async def submit(self) -> Any:
        if self.shared:
            self.copy_into(self.there)
        elif self.work.count == 1:
            self.window.Put([self.memory, self.work.nbytes, MPI.BYTE], TARGET, [0, self.work.nbytes, MPI.BYTE])
        elif self.work.nbytes >= SINGLE_NBYTES:
            nbytes = self.work.nbytes
            for target, source in zip(self.targets.tolist(), self.sources.tolist(), strict=True):
                page = self.memory[source * nbytes : (source + 1) * nbytes]
                self.window.Put([page, nbytes, MPI.BYTE], TARGET, [target * nbytes, nbytes, MPI.BYTE])
        else:
            ours, theirs = self.indexed(self.sources), self.indexed(self.targets)
            self.window.Put([self.memory, 1, ours], TARGET, [0, 1, theirs])
            ours.Free()
            theirs.Free()

    async def finish(self, batch: Any) -> None:  # noqa: ARG002 - it cannot wait for one batch alone
        self.window.Flush(TARGET)
        self.comm.Send([None, 0, MPI.BYTE], TARGET, TAG)

    async def attend(self, rounds: int) -> None:
        for _ in range(rounds):
            self.comm.Recv([None, 0, MPI.BYTE], INITIATOR, TAG)
        self.window.Sync()

    def write_word(self, value: int) -> None:
        if self.shared:
            self.their_words[0] = value
            self.window.Sync()
            return
        self.words[1] = value
        self.window.Put([self.memory[WORD:], WORD, MPI.BYTE], self.other, [0, WORD, MPI.BYTE])
        self.window.Flush(self.other)

    def poll(self) -> int:
        while (value := self.words[0]) == self.seen:
            if not self.shared:
                self.comm.Iprobe()  # without it, nothing may arrive over a network
        self.window.Sync()
        self.seen = value
        return value

    async def close(self) -> None:
        self.window.Unlock_all()
        self.window.Free()
        MPI.Finalize()
