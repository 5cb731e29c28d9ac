"""Helpers of the fabric's tests: two connected engines with memory on a simulated fabric, and waits."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from aio_transfer import ProviderError, RemoteRegion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from numpy.typing import NDArray

    from aio_transfer import ImmCounter, Region, Transfer, TransferEngine
    from aio_transfer.testing import SimFabric

ASYNCIO = ("asyncio", {"debug": True, "use_uvloop": False})
UVLOOP = ("asyncio", {"use_uvloop": True})
TRIO = ("trio", {})
every_loop = pytest.mark.parametrize("anyio_backend", [ASYNCIO, UVLOOP, TRIO], ids=["asyncio", "uvloop", "trio"])

MTU = 512
KIB = 1024
CANARY = 0xA5


class Ends(NamedTuple):
    """A sender ``a`` and a receiver ``b``, connected, with memory on both sides."""

    a: TransferEngine
    b: TransferEngine
    source: NDArray[np.uint8]
    target: NDArray[np.uint8]
    here: Region
    there: Region
    remote: RemoteRegion
    counter: ImmCounter

    def write(self, begin: int, end: int, counter: ImmCounter | None = None) -> Transfer:
        ref = None if counter is None else self.a.counter_ref(self.b.address, counter.id)
        return self.a.submit_write(self.here[begin:end], self.remote[begin:end], counter=ref)

    def arrived(self, begin: int, end: int) -> bool:
        return np.array_equal(self.target[begin:end], self.source[begin:end])


async def attach(a: TransferEngine, b: TransferEngine, nbytes: int = 64 * KIB) -> Ends:
    source, target = a.allocate(nbytes), b.allocate(nbytes)
    source[:] = np.random.default_rng(1).integers(16, 128, nbytes)  # not the canary, nor bytes of later writes
    here, there = await a.register(source), await b.register(target)
    counter = b.counter()
    remote = RemoteRegion.from_bytes(bytes(there.descriptor(counter)))
    with contextlib.suppress(ProviderError):  # after a random fault, connection and import exist all the same
        await a.write(here[:8], remote[:8])
    counter.close()
    target[:] = CANARY
    counter = b.counter()
    remote = RemoteRegion.from_bytes(bytes(there.descriptor(counter)))
    return Ends(a, b, source, target, here, there, remote, counter)


@contextlib.asynccontextmanager
async def ends(fabric: SimFabric, nbytes: int = 64 * KIB) -> AsyncIterator[Ends]:
    async with fabric.engine(label="a", grace_s=0.1) as a, fabric.engine(label="b", grace_s=0.1) as b:
        yield await attach(a, b, nbytes)


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def until(condition: Callable[[], object], deadline_s: float = 10) -> None:
    with anyio.fail_after(deadline_s):
        while not condition():
            await anyio.lowlevel.checkpoint()


def handles(engine: TransferEngine) -> int:
    return engine.statistics().drivers["sim"]["handles"]


def numbers(found: Iterable[bool]) -> set[int]:
    return {index for index, is_so in enumerate(found) if is_so}
