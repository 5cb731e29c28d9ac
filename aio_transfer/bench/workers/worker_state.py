"""What one process of the benchmark holds, and the steps that every family begins with.

A step is a coroutine function of this package, ``async def step(place, ask) -> say`` with structs for both, that the
coordinator calls in a worker by passing the function itself.
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
from aio_transfer.bench.workers.messages import Start
from aio_transfer.errors import AioTransferError
from aio_transfer.memory.allocation import find_allocation
from aio_transfer.memory.buffers import memory_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from aio_transfer import ImmCounter, Region

__all__ = ("Aim", "Expect", "Nothing", "Offer", "Offered", "Place", "Step", "aim", "cpu_ns", "expect", "fill", "offer")

WAIT_S: Final = 30.0
LOOPBACK: Final = "127.0.0.1"
AskT = TypeVar("AskT", bound=msgspec.Struct)
SayT = TypeVar("SayT", bound=msgspec.Struct)
_T = TypeVar("_T")


@dataclass(slots=True)
class Held:
    """Memory that this process offers or sends from."""

    array: NDArray[np.uint8]
    region: Region
    counter: ImmCounter
    expected: int = 0


@dataclass(slots=True)
class Place:
    """Engines, memory and peers of one process. Numbers in messages are indices into these lists."""

    start: Start
    engines: list[TransferEngine] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    targets: list[Offered] = field(default_factory=list)
    remotes: list[RemoteRegion] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
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
        """Close them."""
        await self.stack.aclose()

    @property
    def pids(self) -> list[int]:
        """The processes at the other end, where they are on this host."""
        if self.start.host:
            return []
        return sorted({target.pid for target in self.targets} - {os.getpid()})

    async def once(self, name: str, make: Callable[[], Awaitable[_T]]) -> _T:
        """Return what ``make`` returned when it was first asked for under this name."""
        if name not in self.kept:
            self.kept[name] = await make()
        found: _T = self.kept[name]
        return found


Step: TypeAlias = Callable[[Place, AskT], Awaitable[SayT]]


class Nothing(msgspec.Struct, frozen=True):
    """Nothing to ask, or nothing to say."""


class Offer(msgspec.Struct, frozen=True):
    """Take memory, fill it, register it with one of the engines.

    :param foreign: not from ``engine.allocate``
    :param seed: of its content; 0 for zeros
    """

    nbytes: int
    engine: int = 0
    foreign: bool = False
    seed: int = 0


class Offered(msgspec.Struct, frozen=True):
    """Where it is, for engines (``blob``) and for raw loops (the rest).

    :param fd: -1 for memory that cannot be mapped
    :param provider: what carries bytes to this engine
    """

    blob: bytes
    index: int
    pid: int
    fd: int
    fd_offset: int
    addr: int
    nbytes: int
    provider: str


async def offer(place: Place, ask: Offer) -> Offered:
    """Perform :class:`Offer`."""
    engine = place.engines[ask.engine]
    array = np.empty(ask.nbytes, np.uint8) if ask.foreign else engine.allocate(ask.nbytes)
    array[:] = fill(ask.nbytes, ask.seed) if ask.seed else 0  # page faults belong to nobody's sample
    region = await engine.register(array)
    counter = engine.counter()
    place.held.append(Held(array, region, counter))
    address = memory_of(array).address
    home = find_allocation(address, ask.nbytes)
    return Offered(
        blob=bytes(region.descriptor(counter=counter)),
        index=len(place.held) - 1,
        pid=os.getpid(),
        fd=-1 if home is None else home.fd,
        fd_offset=0 if home is None else address - home.address,
        addr=address,
        nbytes=ask.nbytes,
        provider=engine.address.backends[place.start.backend],
    )


def fill(nbytes: int, seed: int) -> NDArray[np.uint8]:
    """Return bytes that no two pages have in common."""
    words = np.random.default_rng(seed).integers(0, 2**64, -(-nbytes // 8), np.uint64)
    return words.view(np.uint8)[:nbytes]


class Aim(msgspec.Struct, frozen=True):
    """Connect one of the engines to the owners of this memory."""

    targets: list[Offered]
    engine: int = 0


async def aim(place: Place, ask: Aim) -> Nothing:
    """Perform :class:`Aim`."""
    for target in ask.targets:
        remote = RemoteRegion.from_bytes(target.blob)
        await place.engines[ask.engine].connect(remote.peer)
        place.targets.append(target)
        place.remotes.append(remote)
    return Nothing()


class Expect(msgspec.Struct, frozen=True):
    """Wait for counts that must come by themselves.

    :param held: whose counter
    """

    counts: int
    held: int = 0


async def expect(place: Place, ask: Expect) -> Nothing:
    """Perform :class:`Expect`.

    :raises AioTransferError: they do not come, or more than these have come
    """
    held = place.held[ask.held]
    held.expected += ask.counts
    with anyio.move_on_after(WAIT_S):
        await held.counter.wait(ask.counts)
    if held.counter.value != held.expected:
        raise AioTransferError(f"expected {held.expected} counts in all, and {held.counter.value} have come")
    return Nothing()


def cpu_ns(pids: Sequence[int]) -> int:
    """Return the user and system time, in all threads so far, of this process and others of this host."""
    # The CPU clock of a process is named by ~pid << 3 | CPUCLOCK_SCHED: include/linux/posix-timers.h.
    others = sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)
    return time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) + others
