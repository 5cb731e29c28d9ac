"""Checks of one-sided reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aio_transfer.driver.records import Access
from aio_transfer.errors import StaleRegionError, UsageError
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import pair, ping
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from aio_transfer.testing.spec import Spec


@check("rule 6", "reads")
async def check_read_brings_bytes(spec: Spec) -> None:
    """A read fills exactly its target with the peer's bytes, which stay as they are."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local, far = await Memory.open(a, 2000, rng), await Memory.open(b, 2000, rng)
        await a.read(local.region[10:1010], far.remote()[333:1333])
        local.expect(10, far.array[333:1333])
        local.verify("when the read was over")
        far.verify("after it was read")


@check("rule 6", "reads")
async def check_read_sizes(spec: Spec) -> None:
    """Reads of every size around the boundaries are exact, also of zero bytes."""
    rng = spec.rng()
    largest = max(spec.boundaries)
    async with pair(spec) as (a, b):
        local, far = await Memory.open(a, largest + 1, rng), await Memory.open(b, largest + 1, rng)
        remote = far.remote()
        for size in (0, 1, *(size + by for size in spec.boundaries for by in (-1, 0, 1))):
            await a.read(local.region[:size], remote[far.nbytes - size :])
            local.expect(0, far.array[far.nbytes - size :])
            local.verify(f"after a read of {size} B")


@check("rule 6", "reads")
async def check_read_pages(spec: Spec) -> None:
    """A paged read gathers page i into page i."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local, far = await Memory.open(a, 64 * 128, rng), await Memory.open(b, 64 * 128, rng)
        to, of = rng.permutation(64)[:40].tolist(), rng.permutation(64)[:40].tolist()
        await a.submit_read_pages(local.region.pages(to, 128), far.remote().pages(of, 128))
        for here, there in zip(to, of, strict=True):
            local.expect(here * 128, far.array[there * 128 : there * 128 + 128])
        local.verify()
        far.verify()


@check("rule 2", "reads")
async def check_read_sees_counted_write(spec: Spec) -> None:
    """A read after the count of a write returns the bytes of that write."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 1 << 18, rng), await Memory.open(b, 1 << 18, rng)
        back = await Memory.open(a, 1 << 18, rng)
        counter = b.counter()
        remote = target.remote(counter)
        await a.write(source.region[:], remote[:])
        await counter.wait()
        target.expect(0, source.array)
        await a.read(back.region[:], remote[:])
        back.expect(0, source.array)
        back.verify("read back after the count")


@check("rule 3", "reads")
async def check_read_counts_nothing(spec: Spec) -> None:
    """A read raises no counter, though the descriptor names one."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local, far = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        await a.read(local.region[:], far.remote(counter)[:])
        local.expect(0, far.array)
        await ping(a, b)
        claim(counter.value == 0, f"a read raised a counter to {counter.value}")


@check("rule 1", "reads")
async def check_read_beside_writes(spec: Spec) -> None:
    """Reads and writes of both sides at once do not disturb each other."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local, far = await Memory.open(a, 32 * 4096, rng), await Memory.open(b, 32 * 4096, rng)
        source, target = await Memory.open(b, 32 * 4096, rng), await Memory.open(a, 32 * 4096, rng)
        counter = a.counter()
        read, written = far.remote(), target.remote(counter)

        async def one(at: int) -> None:
            await a.read(local.region[at : at + 4096], read[at : at + 4096])
            await b.write(source.region[at : at + 4096], written[at : at + 4096])

        async with anyio.create_task_group() as tasks:
            for at in range(0, 32 * 4096, 4096):
                tasks.start_soon(one, at)
        local.expect(0, far.array)
        target.expect(0, source.array)
        await counter.wait(32)
        claim(counter.value == 32, f"32 writes beside reads gave {counter.value} counts")


@check("rule 9", "reads")
async def check_read_without_leave(spec: Spec) -> None:
    """A region that grants no read cannot be read, and local memory that is read-only cannot be a read's target."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local = await Memory.open(a, 64, rng)
        far = await Memory.open(b, 64, rng, access=Access.REMOTE_WRITE)
        with refused("a read of a write-only region", UsageError):
            await a.read(local.region[:], far.remote()[:])
        readable = await Memory.open(b, 64, rng, access=Access.REMOTE_READ)
        frozen = await a.register(bytes(64), access=Access.LOCAL)
        with refused("a read into bytes", UsageError):
            await a.read(frozen[:], readable.remote()[:])
        await frozen.aclose()


@check("rule 9", "reads")
async def check_read_of_closed_region(spec: Spec) -> None:
    """A read of a closed region is refused, and changes no byte."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local, far = await Memory.open(a, 4096, rng), await Memory.open(b, 4096, rng)
        remote = far.remote()
        await far.region.aclose()
        with refused("a read of a closed region", StaleRegionError):
            await a.read(local.region[:], remote[:])
        local.verify()


@check("rule 7", "reads")
async def check_read_cancelled(spec: Spec) -> None:
    """A cancelled read goes on, and its target stays leased until it is over."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local, far = await Memory.open(a, 4 << 20, rng), await Memory.open(b, 4 << 20, rng)
        remote = far.remote()
        await a.read(local.region[:1], remote[:1])
        transfer = a.submit_read(local.region[:], remote[:])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transfer
        claim(transfer.done or local.region.leases == 1, "the cancelled read holds no lease, and is not over")
        await local.region.aclose()
        claim(transfer.done, "the region was given back while a read into it was under way")
        local.expect(0, far.array)
        local.verify("after the region was taken back")
