"""What a library must do for us, and what those that send and receive have in common."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from works import REGION_NBYTES, Work, chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

INITIATOR, TARGET = range(2)
WORD: Final = 8


@dataclass(frozen=True, slots=True)
class Start:
    """Which end to be, and how.

    :param path: ``"shm"`` (memory of the library's, where it has any), ``"foreign"`` (the user's own) or ``"tcp"``
    :param folder: for sockets
    """

    role: int
    path: str
    folder: str
    options: Mapping[str, str]


class Adapter(abc.ABC):
    """One end. Both are told the same at the same time, except who moves and who attends, who pings and who pongs.

    A batch is done when its bytes are at the target and the initiator knows.
    """

    memory: NDArray[np.uint8]
    """What is sent from here, or received into."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.initiates = start.role == INITIATOR

    @abc.abstractmethod
    async def open(self) -> str:
        """Take memory; returns what the other end must know."""

    @abc.abstractmethod
    async def join(self, other: str) -> None:
        """Connect to the other end."""

    def begin(self, work: Work) -> None:
        """Prepare what a user would before the first of many such batches."""
        self.work = work
        self.sources, self.targets = chunks(work, "source"), chunks(work, "target")

    @abc.abstractmethod
    async def submit(self) -> Any:
        """Start a batch."""

    @abc.abstractmethod
    async def finish(self, batch: Any) -> None:
        """Wait until it is done."""

    @abc.abstractmethod
    async def attend(self, rounds: int) -> None:
        """At the target: do what it must while so many batches come, and see that they have, where it is told."""

    @abc.abstractmethod
    async def ping(self, value: int) -> int:
        """Send a word, wait for one."""

    @abc.abstractmethod
    async def pong(self) -> None:
        """Wait for a word, send it back."""

    async def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Leave in peace."""

    def pages(self, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return memory as the chunks of a batch."""
        return memory[: self.work.moved].reshape(self.work.count, self.work.nbytes)

    def own_memory(self) -> NDArray[np.uint8]:
        """Return memory of the user's own, without page faults to come."""
        memory = np.empty(REGION_NBYTES, np.uint8)
        memory[:] = 0
        return memory

    def copy_into(self, there: NDArray[np.uint8]) -> None:
        """Copy a batch, where the target's memory is mapped here."""
        theirs, ours = self.pages(there), self.pages(self.memory)
        for target, source in zip(self.targets.tolist(), self.sources.tolist(), strict=True):
            theirs[target] = ours[source]


class Polled(Adapter):
    """Libraries that write into memory and tell nobody: whoever waits for a word looks at it."""

    words: memoryview
    """The memory, in words: the first is what the other end writes."""

    @abc.abstractmethod
    def write_word(self, value: int) -> None:
        """Write a word into the other end's memory."""

    @abc.abstractmethod
    def poll(self) -> int:
        """Wait until the first word is another than ``seen``, and keep it."""

    def begin(self, work: Work) -> None:
        super().begin(work)
        self.seen = self.words[0]

    async def ping(self, value: int) -> int:
        self.write_word(value)
        return self.poll()

    async def pong(self) -> None:
        self.write_word(self.poll())


class TwoSided(Adapter):
    """Libraries that send and receive: pages are packed into one message, and the target unpacks and answers it."""

    @abc.abstractmethod
    async def send(self, data: NDArray[np.uint8]) -> None:
        """Send a message."""

    @abc.abstractmethod
    async def receive(self, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Wait for a message as long as ``into``; returns where it is, which may be elsewhere."""

    def begin(self, work: Work) -> None:
        super().begin(work)
        self.packed = [np.zeros(work.moved if work.count > 1 else 0, np.uint8) for _ in range(work.depth)]
        self.word = np.zeros(WORD, np.uint8)
        self.submitted = 0

    async def submit(self) -> Any:
        data = self.memory[: self.work.moved]
        if self.work.count > 1:
            data = self.packed[self.submitted % self.work.depth]
            # "clip" because "raise" packs into a buffer first, in case it must raise.
            np.take(self.pages(self.memory), self.sources, axis=0, out=self.pages(data), mode="clip")
        self.submitted += 1
        return await self.post(data)

    async def post(self, data: NDArray[np.uint8]) -> Any:
        """Send a batch, or begin to."""
        await self.send(data)

    async def finish(self, batch: Any) -> None:
        if batch is not None:
            await batch
        await self.receive(self.word)

    async def attend(self, rounds: int) -> None:
        answer = np.zeros(WORD, np.uint8)
        for _ in range(rounds):
            if self.work.count > 1:
                packed = await self.receive(self.packed[0])
                self.pages(self.memory)[self.targets] = self.pages(packed)
            else:
                target = self.memory[: self.work.nbytes]
                whole = await self.receive(target)
                if whole is not target:
                    target[:] = whole
            await self.send(answer)

    async def ping(self, value: int) -> int:
        self.word.view(np.int64)[0] = value
        await self.send(self.word)
        return int((await self.receive(self.word)).view(np.int64)[0])

    async def pong(self) -> None:
        await self.send(await self.receive(self.word))
