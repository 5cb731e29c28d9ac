"""State of one worker process, and the steps that every family begins with: allocate memory, connect, await counts.

A step is a coroutine function of this package, ``async def step(state, request) -> response`` with structs for both.
The coordinator runs it in a worker by passing the function itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import anyio
import msgspec
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine
from aio_transfer.bench.workers.messages import StartWorker
from aio_transfer.errors import AioTransferError
from aio_transfer.memory.allocation import find_allocation
from aio_transfer.memory.buffers import memory_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from aio_transfer import ImmCounter, Region

__all__ = (
    "AllocateMemory",
    "AllocatedMemory",
    "AwaitCounts",
    "Connect",
    "Empty",
    "MeasuredMemory",
    "Step",
    "WorkerState",
    "allocate_memory",
    "await_counts",
    "connect",
    "cpu_ns",
    "random_bytes",
)

WAIT_S: Final = 30.0
LOOPBACK: Final = "127.0.0.1"
RequestT = TypeVar("RequestT", bound=msgspec.Struct)
ResponseT = TypeVar("ResponseT", bound=msgspec.Struct)


@dataclass(slots=True)
class MeasuredMemory:
    """Memory of this process: the source of its writes, or the target of its peers'.

    :ivar expected: counts that :func:`await_counts` has waited for so far
    """

    array: NDArray[np.uint8]
    region: Region
    counter: ImmCounter
    expected: int = 0


@dataclass(slots=True)
class WorkerState:
    """Engines, memory and peers of one worker process. Numbers in requests are indices into these lists.

    :ivar memories: of this process
    :ivar targets: memory of other processes, in the order of ``remotes``
    :ivar resources: other objects that steps keep, by name
    """

    start: StartWorker
    engines: list[TransferEngine] = field(default_factory=list)
    memories: list[MeasuredMemory] = field(default_factory=list)
    targets: list[AllocatedMemory] = field(default_factory=list)
    remotes: list[RemoteRegion] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        """Open the engines."""
        for _ in range(self.start.engines):
            host = self.start.host or LOOPBACK
            engine = TransferEngine(backend=self.start.backend, host=host, options=self.start.backend_options)
            self.engines.append(await self.stack.enter_async_context(engine))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engines."""
        await self.stack.aclose()

    @property
    def peer_pids(self) -> list[int]:
        """Ids of the processes that own the targets; empty if those are on another host."""
        if self.start.host:
            return []
        return sorted({target.pid for target in self.targets} - {os.getpid()})


Step: TypeAlias = Callable[[WorkerState, RequestT], Awaitable[ResponseT]]


class Empty(msgspec.Struct, frozen=True):
    """Request or response without content."""


class AllocateMemory(msgspec.Struct, frozen=True):
    """Request to allocate memory, to fill it, and to register it with one of the engines.

    :param foreign: allocate with NumPy instead of ``engine.allocate``
    :param seed: of the content; 0 for zeros
    """

    nbytes: int
    engine: int = 0
    foreign: bool = False
    seed: int = 0


class AllocatedMemory(msgspec.Struct, frozen=True):
    """Location of memory: for engines (``descriptor``) and for baselines (the other fields).

    :param fd: -1 for memory that cannot be mapped
    :param provider: provider of the engine's backend
    """

    descriptor: bytes
    index: int
    pid: int
    fd: int
    fd_offset: int
    addr: int
    nbytes: int
    provider: str


async def allocate_memory(state: WorkerState, request: AllocateMemory) -> AllocatedMemory:
    """Perform :class:`AllocateMemory`."""
    engine = state.engines[request.engine]
    array = np.empty(request.nbytes, np.uint8) if request.foreign else engine.allocate(request.nbytes)
    # Written even without a seed, so that no sample pays for page faults.
    array[:] = random_bytes(request.nbytes, request.seed) if request.seed else 0
    region = await engine.register(array)
    counter = engine.counter()
    state.memories.append(MeasuredMemory(array, region, counter))
    address = memory_of(array).address
    allocation = find_allocation(address, request.nbytes)
    return AllocatedMemory(
        descriptor=bytes(region.descriptor(counter=counter)),
        index=len(state.memories) - 1,
        pid=os.getpid(),
        fd=-1 if allocation is None else allocation.fd,
        fd_offset=0 if allocation is None else address - allocation.address,
        addr=address,
        nbytes=request.nbytes,
        provider=engine.address.backends[state.start.backend],
    )


def random_bytes(nbytes: int, seed: int) -> NDArray[np.uint8]:
    """Return pseudo-random bytes: any two pages differ, and every process computes the same."""
    words = np.random.default_rng(seed).integers(0, 2**64, -(-nbytes // 8), np.uint64)
    return words.view(np.uint8)[:nbytes]


class Connect(msgspec.Struct, frozen=True):
    """Request to connect one of the engines to the owners of this memory."""

    targets: list[AllocatedMemory]
    engine: int = 0


async def connect(state: WorkerState, request: Connect) -> Empty:
    """Perform :class:`Connect`."""
    for target in request.targets:
        remote = RemoteRegion.from_bytes(target.descriptor)
        await state.engines[request.engine].connect(remote.peer)
        state.targets.append(target)
        state.remotes.append(remote)
    return Empty()


class AwaitCounts(msgspec.Struct, frozen=True):
    """Request to wait for counts.

    :param memory: index of the memory whose counter is raised
    """

    counts: int
    memory: int = 0


async def await_counts(state: WorkerState, request: AwaitCounts) -> Empty:
    """Perform :class:`AwaitCounts`.

    :raises AioTransferError: fewer counts than these have arrived, or more
    """
    memory = state.memories[request.memory]
    memory.expected += request.counts
    with anyio.move_on_after(WAIT_S):
        await memory.counter.wait(request.counts)
    if memory.counter.value != memory.expected:
        raise AioTransferError(f"expected {memory.expected} counts in total, but {memory.counter.value} have arrived")
    return Empty()


def cpu_ns(pids: Sequence[int]) -> int:
    """Return the user and system time so far, in all threads, of this process and of others on this host."""
    # The CPU clock of a process is named by ~pid << 3 | CPUCLOCK_SCHED: include/linux/posix-timers.h.
    others = sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)
    return time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) + others
