"""Adapter interface of a library, and base classes for libraries that poll and for those that send and receive."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from workloads import REGION_NBYTES, Workload, chunk_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

INITIATOR, TARGET = range(2)
WORD_NBYTES: Final = 8


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """Role of a worker, and its options.

    :param path: ``"shm"`` (memory of the library, if it allocates any), ``"foreign"`` (memory of the user) or ``"tcp"``
    :param folder: for sockets
    """

    role: int
    path: str
    folder: str
    options: Mapping[str, str]


class Adapter(abc.ABC):
    """One of two ends. Both get the same requests, but one submits and pings while the other receives and pongs.

    A batch is done when its bytes are at the target and the initiator has learned it.
    """

    memory: NDArray[np.uint8]
    """Source or target of all transfers."""

    def __init__(self, start: AdapterOptions) -> None:
        self.start = start
        self.is_initiator = start.role == INITIATOR

    @abc.abstractmethod
    async def open(self) -> str:
        """Allocate memory; returns the address that the other end needs."""

    @abc.abstractmethod
    async def connect(self, other: str) -> None:
        """Connect to the other end."""

    def prepare(self, work: Workload) -> None:
        """Prepare what an application would before many such batches."""
        self.work = work
        self.sources, self.targets = chunk_order(work, "source"), chunk_order(work, "target")

    @abc.abstractmethod
    async def submit(self) -> Any:
        """Start a batch."""

    @abc.abstractmethod
    async def finish(self, batch: Any) -> None:
        """Wait until it is done."""

    @abc.abstractmethod
    async def receive_batches(self, iterations: int) -> None:
        """At the target: make progress until so many batches have arrived, and check it if the library notifies."""

    @abc.abstractmethod
    async def ping(self, value: int) -> int:
        """Send a word, wait for one."""

    @abc.abstractmethod
    async def pong(self) -> None:
        """Wait for a word, send it back."""

    async def close(self) -> None:  # noqa: B027 - optional
        """Close the library."""

    def pages(self, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return memory as the chunks of a batch."""
        return memory[: self.work.moved].reshape(self.work.count, self.work.nbytes)

    def allocate(self) -> NDArray[np.uint8]:
        """Return memory allocated by the user, with its page faults done."""
        memory = np.empty(REGION_NBYTES, np.uint8)
        memory[:] = 0
        return memory

    def copy_into(self, target_memory: NDArray[np.uint8]) -> None:
        """Copy a batch into the target's memory, which is mapped here."""
        targets, sources = self.pages(target_memory), self.pages(self.memory)
        for target, source in zip(self.targets.tolist(), self.sources.tolist(), strict=True):
            targets[target] = sources[source]


class PollingAdapter(Adapter):
    """Libraries that write into memory without a notification: the other end polls a word."""

    words: memoryview
    """The memory in words, the first of which is written by the other end."""

    @abc.abstractmethod
    def write_word(self, value: int) -> None:
        """Write a word into the other end's memory."""

    @abc.abstractmethod
    def poll(self) -> int:
        """Wait until the first word differs from ``seen``, and store it there."""

    def prepare(self, work: Workload) -> None:
        super().prepare(work)
        self.seen = self.words[0]

    async def ping(self, value: int) -> int:
        self.write_word(value)
        return self.poll()

    async def pong(self) -> None:
        self.write_word(self.poll())


class MessagingAdapter(Adapter):
    """Libraries that send and receive: pages are packed into one message, which the target unpacks and answers."""

    @abc.abstractmethod
    async def send(self, data: NDArray[np.uint8]) -> None:
        """Send a message."""

    @abc.abstractmethod
    async def receive(self, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Wait for a message as long as ``into``; returns its memory, which may be another."""

    def prepare(self, work: Workload) -> None:
        super().prepare(work)
        self.packed = [np.zeros(work.moved if work.count > 1 else 0, np.uint8) for _ in range(work.depth)]
        self.word = np.zeros(WORD_NBYTES, np.uint8)
        self.submitted = 0

    async def submit(self) -> Any:
        data = self.memory[: self.work.moved]
        if self.work.count > 1:
            data = self.packed[self.submitted % self.work.depth]
            # "clip", because "raise" packs into a temporary buffer first.
            np.take(self.pages(self.memory), self.sources, axis=0, out=self.pages(data), mode="clip")
        self.submitted += 1
        return await self.post(data)

    async def post(self, data: NDArray[np.uint8]) -> Any:
        """Send a batch, or start to; returns an awaitable of its end, or ``None``."""
        await self.send(data)

    async def finish(self, batch: Any) -> None:
        if batch is not None:
            await batch
        await self.receive(self.word)

    async def receive_batches(self, iterations: int) -> None:
        answer = np.zeros(WORD_NBYTES, np.uint8)
        for _ in range(iterations):
            if self.work.count > 1:
                packed = await self.receive(self.packed[0])
                self.pages(self.memory)[self.targets] = self.pages(packed)
            else:
                target = self.memory[: self.work.nbytes]
                received = await self.receive(target)
                if received is not target:
                    target[:] = received
            await self.send(answer)

    async def ping(self, value: int) -> int:
        self.word.view(np.int64)[0] = value
        await self.send(self.word)
        return int((await self.receive(self.word)).view(np.int64)[0])

    async def pong(self) -> None:
        await self.send(await self.receive(self.word))
