"""Checks of source and target memory: any memory works, and is leased exactly as long as a transfer uses it."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import anyio.lowlevel
import numpy as np

from aio_transfer.driver.records import Access
from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fixtures import exactly, pair, ping, until_stopped
from aio_transfer.testing.guarded_memory import GUARD_NBYTES, Memory, registered
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from aio_transfer.testing.spec import Spec


@check("rule 6")
async def check_write_source_is_free_afterwards(spec: Spec) -> None:
    """Once the await returns, changing the source changes nothing that was written."""
    rng = spec.rng()
    size = spec.boundaries[-1]
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, size, rng), await Memory.open(b, 4 * size, rng)
        counter = b.counter()
        remote = target.remote(counter)
        for index in range(4):
            source.fill(index + 1)
            target.expect(index * size, source.array)
            await a.write(source.region[:], remote[index * size : (index + 1) * size])
            source.fill(0xEE)
        await counter.wait(4)
        target.verify("though sources were changed only after their writes were over")


@check("rule 6")
async def check_write_from_local_memory(spec: Spec) -> None:
    """Memory that grants no access to peers can be a source, also when it is read-only."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        target = await Memory.open(b, 64, rng)
        source = await a.register(b"read-only memory of ours".ljust(64), access=Access.LOCAL)
        await a.write(source[:], target.remote()[:])
        target.expect(0, np.frombuffer(b"read-only memory of ours".ljust(64), np.uint8))
        await ping(a, b)
        target.verify()
        await source.aclose()


@check("rule 1", "foreign_memory")
async def check_write_foreign_memory(spec: Spec) -> None:
    """Memory that the engine did not allocate can be source and target: arrays, bytearray, mmap."""
    rng = spec.rng()
    size = 300_000 + 2 * GUARD_NBYTES
    async with pair(spec) as (a, b):
        with mmap.mmap(-1, size) as mapped:
            for owner in (np.empty(size, np.uint8), bytearray(size), mapped):
                source = await Memory.open(a, 300_000, rng, owner=np.empty(size, np.uint8))
                target = await Memory.open(b, 300_000, rng, owner=np.frombuffer(owner, np.uint8))
                counter = b.counter()
                await a.write(source.region[5:299_999], target.remote(counter)[6:300_000])
                target.expect(6, source.array[5:299_999])
                await exactly(counter, 1, b, a)
                target.verify(f"in a {type(owner).__name__}")
                await target.region.aclose()
                target.drop()
                del owner  # the mmap can be closed only without views of it
                registered(b).clear()


@check("rule 7")
async def check_write_dropped(spec: Spec) -> None:
    """A transfer that is neither awaited nor referenced is still performed, once."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 1 << 19, rng), await Memory.open(b, 1 << 19, rng)
        counter = b.counter()
        a.submit_write(source.region[:], target.remote(counter)[:])
        target.expect(0, source.array)
        await exactly(counter, 1, b, a)
        target.verify()


@check("rule 6")
async def check_write_lease_ends_with_transfer(spec: Spec) -> None:
    """A lease ends exactly when its transfer has stopped."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 8 << 20, rng), await Memory.open(b, 8 << 20, rng)
        transfer = a.submit_write(source.region[:], target.remote()[:])
        while not transfer.done:
            claim(source.region.leases == 1, f"{source.region.leases} leases are out while it is under way")
            await anyio.lowlevel.checkpoint()
        await until_stopped(transfer)
        claim(source.region.leases == 0, f"{source.region.leases} leases are out after its end")
        target.expect(0, source.array)
