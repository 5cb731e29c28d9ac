"""Checks of contiguous writes: every byte arrives at its target, none elsewhere, and each write counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import numpy as np

from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fixtures import exactly, mesh, pair, ping
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.spec import Spec


@check("rule 3")
async def check_write_counts_once(spec: Spec) -> None:
    """A write changes exactly its target, and counts once."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4096, rng), await Memory.open(b, 4096, rng)
        counter = b.counter()
        await a.write(source.region[100:1100], target.remote(counter)[77:1077])
        await counter.wait(1)
        target.expect(77, source.array[100:1100])
        target.verify("when the count had come")
        await exactly(counter, 0, b, a, total=1)
        source.verify("after it was written from")


@check("rule 3")
async def check_write_sizes(spec: Spec) -> None:
    """Writes of every size around the boundaries of splitting and striping count exactly once."""
    rng = spec.rng()
    sizes = sorted({0, 1, 2, 63, 64, 65} | {size + by for size in spec.boundaries for by in (-1, 0, 1)})
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, sizes[-1], rng), await Memory.open(b, sizes[-1] + 7, rng)
        counter = b.counter()
        remote = target.remote(counter)
        for index, size in enumerate(sizes):
            source.fill(np.roll(source.array, 1))
            await a.write(source.region[:size], remote[7 : 7 + size])
            await counter.wait(1)
            claim(target.holds(7, source.array[:size]), f"the count of a write of {size} B came before its payload")
            target.expect(7, source.array[:size])
            target.verify(f"after a write of {size} B")
            claim(counter.value == index + 1, f"after {index + 1} writes, the last of {size} B: {counter.value} counts")
        await exactly(counter, 0, b, a, total=len(sizes))


@check("rule 3")
async def check_write_of_nothing_counts(spec: Spec) -> None:
    """A write of zero bytes counts once, and changes nothing."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        remote = target.remote(counter)
        for at in (0, 13, 64):
            await a.write(source.region[at:at], remote[at:at])
        await exactly(counter, 3, b, a)
        target.verify()


@check("rule 3")
async def check_write_uncounted(spec: Spec) -> None:
    """A write with counted=False, or to a descriptor without a counter, does not count."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 256, rng), await Memory.open(b, 256, rng)
        counter = b.counter()
        await a.write(source.region[:128], target.remote(counter)[:128], counted=False)
        await a.write(source.region[128:], target.remote()[128:])
        target.expect(0, source.array)
        await exactly(counter, 0, b, a)


@check("rule 3")
async def check_write_names_counter(spec: Spec) -> None:
    """A counter named with the write is raised instead of the descriptor's."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        default, named = b.counter(), b.counter()
        await a.write(source.region[:], target.remote(default)[:], counter=a.counter_ref(b.address, named.id))
        target.expect(0, source.array)
        await exactly(named, 1, b, a)
        claim(default.value == 0, f"the descriptor's counter is at {default.value}, though another was named")


@check("rule 2")
async def check_write_payload_before_count(spec: Spec) -> None:
    """When a count has arrived, all bytes of its write are visible."""
    rng = spec.rng()
    size = 3 * max(spec.boundaries[:3]) // 2
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, size, rng), await Memory.open(b, size, rng)
        counter, ready = b.counter(), a.counter()
        remote = target.remote(counter)
        for stamp in range(1, 60):
            source.fill(stamp)
            transfer = a.submit_write(source.region[:], remote[:])
            await counter.wait()
            seen = np.flatnonzero(target.array != stamp)
            claim(seen.size == 0, f"write {stamp} was counted before {seen.size} of its {size} bytes were there")
            await b.notify(b.counter_ref(a.address, ready.id))
            await ready.wait()
            await transfer
        target.expect(0, source.array)


@check("rule 3")
async def check_write_many_at_once(spec: Spec) -> None:
    """Hundreds of writes submitted before there is a connection all arrive, and count once each."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 400 * 96, rng), await Memory.open(b, 400 * 96, rng)
        counter = b.counter()
        remote = target.remote(counter)
        transfers = [a.submit_write(source.region[at : at + 96], remote[at : at + 96]) for at in range(0, 400 * 96, 96)]
        target.expect(0, source.array)
        await counter.wait(400)
        target.verify("when all counts had come")
        for transfer in transfers:
            await transfer
        await exactly(counter, 0, b, a, total=400)


@check("rule 6")
async def check_transfer_many_awaiters(spec: Spec) -> None:
    """A transfer can be awaited by many tasks, several times, and after its end."""
    rng = spec.rng()
    returned = 0
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 1 << 20, rng), await Memory.open(b, 1 << 20, rng)
        transfer = a.submit_write(source.region[:], target.remote()[:])

        async def wait() -> None:
            nonlocal returned
            await transfer
            await transfer
            returned += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(wait)
        await transfer
        claim(returned == 20, f"{returned} of 20 awaiters returned")
        claim(transfer.done and transfer.exception() is None, f"{transfer!r} has ended well, and says otherwise")
        target.expect(0, source.array)


@check("reports")
async def check_transfer_attributes(spec: Spec) -> None:
    """A transfer names its operation, peer, size and path."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4096, rng), await Memory.open(b, 4096, rng)
        remote = target.remote()
        write = a.submit_write(source.region[:96], remote[:96])
        pages = a.submit_write_pages(source.region.pages([1, 2, 3], 64), remote.pages([4, 5, 6], 64))
        seen = [(one.operation, one.nbytes, one.count, one.peer) for one in (write, pages)]
        due = [("write", 96, 1, "b"), ("write_pages", 192, 3, "b")]
        claim(seen == due, f"transfers call themselves {seen}, and are {due}")
        await write
        await pages
        claim(write.path is not None and write.path.backend == spec.backend, f"its path is {write.path}")
        target.expect(0, source.array[:96])
        target.expect(256, source.array[64:256])


@check("rule 3")
async def check_write_both_ways(spec: Spec) -> None:
    """Traffic in both directions at once, over one connection, arrives unchanged."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        ours, theirs = await Memory.open(a, 1 << 18, rng), await Memory.open(b, 1 << 18, rng)
        targets = await Memory.open(a, 1 << 18, rng), await Memory.open(b, 1 << 18, rng)
        counters = a.counter(), b.counter()

        async def flow(engine: TransferEngine, source: Memory, target: Memory, counter: ImmCounter) -> None:
            remote = target.remote(counter)
            for at in range(0, 1 << 18, 4096):
                await engine.write(source.region[at : at + 4096], remote[at : at + 4096])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flow, a, ours, targets[1], counters[1])
            tasks.start_soon(flow, b, theirs, targets[0], counters[0])
        targets[1].expect(0, ours.array)
        targets[0].expect(0, theirs.array)
        await exactly(counters[1], 64, b, a)
        await exactly(counters[0], 64, a, b)


@check("rule 3")
async def check_write_from_three(spec: Spec) -> None:
    """Three senders raise one counter of one receiver; it shows the sum."""
    rng = spec.rng()
    async with mesh(spec, 4) as (b, *senders):
        target = await Memory.open(b, 3 * 50 * 32, rng)
        counter = b.counter()
        remote = target.remote(counter)
        sources = [await Memory.open(one, 50 * 32, rng) for one in senders]

        async def flow(index: int) -> None:
            for page in range(50):
                at = (index * 50 + page) * 32
                source = sources[index].region[page * 32 : (page + 1) * 32]
                await senders[index].write(source, remote[at : at + 32])

        async with anyio.create_task_group() as tasks:
            for index in range(3):
                tasks.start_soon(flow, index)
                target.expect(index * 1600, sources[index].array)
        for one in senders[1:]:
            await ping(one, b)
        await exactly(counter, 150, b, senders[0])
