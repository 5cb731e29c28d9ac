# ruff: noqa: D401, PLR2004 - a docstring is the promise itself; what counts is due, is written out
"""Regions: leased while anything moves in them, and out of reach once they are closed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import numpy as np

from aio_transfer.driver.records import Access
from aio_transfer.errors import ClosedError, StaleRegionError, UsageError
from aio_transfer.regions.region import RemoteRegion
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import exactly, pair, ping, until
from aio_transfer.testing.guarded_memory import GUARD_NBYTES, Memory, forget, random_bytes
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from aio_transfer.testing.spec import Spec


@check("rule 9")
async def check_region_closed_before_first_write(spec: Spec) -> None:
    """A descriptor whose region was closed before it was ever used is refused, and nothing is written."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        remote = target.remote()
        await target.region.aclose()
        with refused("a write to a region that was closed before", StaleRegionError):
            await a.write(source.region[:], remote[:])
        target.verify("after a write to the closed region")


@check("rule 9")
async def check_region_closed_between_writes(spec: Spec) -> None:
    """A region that was written before is refused once it is closed, at once and later."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        remote = target.remote()
        await a.write(source.region[:], remote[:])
        await ping(a, b)
        target.expect(0, source.array)
        await target.region.aclose()
        source.fill(0x5A)
        for _ in range(3):
            with refused("a write to a region that was closed after the first", StaleRegionError):
                await a.write(source.region[:], remote[:])
            await ping(a, b)
        target.verify("after writes to the closed region")


@check("rule 9")
async def check_region_in_the_same_memory(spec: Spec) -> None:
    """Registering the same memory again does not revive an old descriptor."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        old = target.remote()
        await a.write(source.region[:], old[:])
        await ping(a, b)
        target.expect(0, source.array)
        await target.region.aclose()
        again = await b.register(target.array)
        source.fill(0x77)
        with refused("a write through the descriptor of a former registration", StaleRegionError):
            await a.write(source.region[:], old[:])
        await ping(a, b)
        target.verify("after a write through the old descriptor")
        await again.aclose()


@check("rule 9")
async def check_region_churn(spec: Spec) -> None:
    """In sixty rounds of registering and closing, every old descriptor is refused and every new one works."""
    rng = spec.rng()
    old = []
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 512, rng)
        whole = b.allocate(512 + 2 * GUARD_NBYTES)
        counter = b.counter()
        for index in range(60):
            target = await Memory.open(b, 512, rng, owner=whole)
            remote = target.remote(counter)
            await a.write(source.region[:], remote[:])
            target.expect(0, source.array)
            await counter.wait()
            await target.region.aclose()
            old.append(remote)
            stale = old[int(rng.integers(len(old)))]
            with refused(f"a write through one of {index + 1} old descriptors", StaleRegionError):
                await a.write(source.region[:], stale[:], counted=False)
            target.verify(f"in round {index}")
        await exactly(counter, 0, b, a, total=60)
        forget(b)


@check("rule 7")
async def check_region_closed_while_it_is_asked_for(spec: Spec) -> None:
    """A region that closes in the moment a peer first asks for it is refused or written, and leaves no handle."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 64, rng)
        await a.connect(b.address)
        await ping(a, b)
        level = a.statistics().drivers[spec.backend].get("handles", 0)
        for index in range(40):
            region = await b.register(b.allocate(64))
            remote = RemoteRegion(region.descriptor())
            transfer = a.submit_write(source.region[:], remote[:])
            for _ in range(index % 10):
                await anyio.lowlevel.checkpoint()
            await region.aclose()
            with contextlib.suppress(StaleRegionError):
                await transfer
        await ping(a, b)
        await until(
            lambda: a.statistics().drivers[spec.backend].get("handles", 0) <= level,
            lambda: (
                f"handles rose from {level} to {a.statistics().drivers[spec.backend]['handles']} "
                "though every region of the peer's is closed"
            ),
        )


@check("rule 7")
async def check_region_close_waits_for_transfers(spec: Spec) -> None:
    """Closing a source waits for the transfers that use it; they end well."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 16 << 20, rng), await Memory.open(b, 16 << 20, rng)
        counter = b.counter()
        remote = target.remote(counter)
        await a.connect(b.address)
        transfers = [
            a.submit_write(source.region[at : at + (4 << 20)], remote[at : at + (4 << 20)])
            for at in range(0, 16 << 20, 4 << 20)
        ]
        claim(source.region.leases == 4, f"4 transfers are under way, and {source.region.leases} leases are out")
        await source.region.aclose()
        unfinished = [repr(one) for one in transfers if not one.done]
        claim(not unfinished, f"the source was given back while {unfinished} were under way")
        for transfer in transfers:
            await transfer
        target.expect(0, source.array)
        await exactly(counter, 4, b, a)


@check("rule 7")
async def check_region_closing_gives_no_lease(spec: Spec) -> None:
    """Nothing can be submitted from, cut out of or described of a region that is closing or closed."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 8 << 20, rng), await Memory.open(b, 8 << 20, rng)
        remote = target.remote()
        part, pages = source.region[:64], source.region.pages([1], 64)
        transfer = a.submit_write(source.region[:], remote[:])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.region.aclose)
            await until(lambda: source.region._lease.state.value != "open", "closing does not begin")
            for _ in range(2):  # while it closes, and after
                with refused("a write from a closing region", ClosedError):
                    await a.write(part, remote[:64])
                with refused("pages of a closing region", ClosedError):
                    await a.write_pages(pages, remote.pages([1], 64))
                with refused("a slice of a closing region", ClosedError):
                    _ = source.region[:8]
                with refused("a descriptor of a closing region", ClosedError):
                    source.region.descriptor()
                await transfer
                await source.region.aclose()
        target.expect(0, source.array)


@check("closing")
async def check_region_closed_twice(spec: Spec) -> None:
    """Closing a region again, and from several tasks at once, is fine."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4 << 20, rng), await Memory.open(b, 4 << 20, rng)
        a.submit_write(source.region[:], target.remote()[:])
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(source.region.aclose)
        await source.region.aclose()
        claim(source.region._lease.state.value == "closed", f"its state is {source.region._lease.state}")
        target.expect(0, source.array)


@check("rule 7")
async def check_region_close_cancelled(spec: Spec) -> None:
    """A cancelled close has begun all the same; called again, it waits until the end."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 8 << 20, rng), await Memory.open(b, 8 << 20, rng)
        transfer = a.submit_write(source.region[:], target.remote()[:])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await source.region.aclose()
        with refused("to use a region whose close was cancelled", ClosedError):
            _ = source.region[:]
        await source.region.aclose()
        claim(transfer.done, "the second close did not wait for the transfer")
        claim(a.statistics().regions == 0, f"{a.statistics().regions} regions are registered")
        target.expect(0, source.array)


@check("rule 9")
async def check_region_access(spec: Spec) -> None:
    """A region is written only where it grants that: not LOCAL ones, not readable ones."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 64, rng)
        for access in (Access.LOCAL, Access.REMOTE_READ):
            target = await Memory.open(b, 64, rng, access=access)
            with refused(f"a write to a region with {access}", UsageError):
                await a.write(source.region[:], target.remote()[:])
            with refused(f"pages to a region with {access}", UsageError):
                await a.write_pages(source.region.pages([0], 64), target.remote().pages([0], 64))


@check("bad input")
async def check_region_of_bad_memory(spec: Spec) -> None:
    """Memory that cannot be registered is refused: read-only, scattered, empty, objects."""
    async with pair(spec) as (a, _):
        bad = {
            "bytes, for peers to write": b"read-only",
            "every second element": np.zeros(64, np.uint8)[::2],
            "nothing": np.zeros(0, np.uint8),
            "objects": np.array([object()]),
            "a number": 5,
            "a string": "text",
        }
        for what, memory in bad.items():
            with refused(f"registering {what}", UsageError):
                await a.register(memory)
        claim(a.statistics().regions == 0, f"refused memory left {a.statistics().regions} regions")


@check("rule 7")
async def check_region_memory_outlives_it(spec: Spec) -> None:
    """Arrays of a region stay valid when the region and the engine are closed."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        memory = b.allocate((4, 256), np.uint32)
        region = await b.register(memory)
        view = region.array
        source = await Memory.open(a, 4096, rng)
        counter = b.counter()
        await a.write(source.region[:], RemoteRegion(region.descriptor(counter))[:])
        await counter.wait()
        await region.aclose()
        with refused("the array of a closed region", ClosedError):
            _ = region.array
        await b.aclose()
        claim(view.tobytes() == source.array.tobytes(), "the memory changed when its engine closed")
        view[:] = 1
        claim(int(memory.sum(dtype=np.uint64)) == 0x01010101 * 1024, "the memory cannot be used after closing")


@check("rule 7")
async def check_regions_many(spec: Spec) -> None:
    """Two hundred regions at once, each its own, leave nothing behind."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 200 * 32, rng)
        targets = [
            await b.register(random_bytes(rng, 32).copy() if spec.foreign_memory else b.allocate(32))
            for _ in range(200)
        ]
        remotes = [RemoteRegion(target.descriptor()) for target in targets]
        transfers = [a.submit_write(source.region[at * 32 : at * 32 + 32], remotes[at][:]) for at in range(200)]
        for transfer in transfers:
            await transfer
        await ping(a, b)
        wrong = [at for at in range(200) if not np.array_equal(targets[at].array, source.array[at * 32 : at * 32 + 32])]
        claim(not wrong, f"regions {wrong} hold something else than what was written to them")
        for target in targets:
            await target.aclose()
