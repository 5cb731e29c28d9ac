"""Checks of counters: early counts are kept, and counters are separate from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aio_transfer.driver.records import PRIVATE_COUNTER_BIT
from aio_transfer.errors import AioTransferError, BusyError, ClosedError
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import exactly, mesh, pair, ping, until
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.testing.spec import Spec


@check("rule 4")
async def check_early_counts(spec: Spec) -> None:
    """Counts that arrive before any wait are kept."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        for _ in range(20):
            await a.notify(a.counter_ref(b.address, counter.id))
        await ping(a, b)
        claim(counter.value == 20, f"20 notifications before any wait: {counter.value} counts")
        await exactly(counter, 20, b, a)


@check("rule 4")
async def check_early_counts_well_known(spec: Spec) -> None:
    """Counts for a well-known id are kept from before that counter is opened."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 640, rng), await Memory.open(b, 640, rng)
        ids = range(10)
        await a.write_pages(source.region.pages(ids, 64), target.remote(4711).pages(ids, 64))
        await ping(a, b)
        target.expect(0, source.array)
        counter = b.counter(4711)
        claim(counter.value == 10, f"10 counts came before counter 4711 was opened, and it shows {counter.value}")
        await exactly(counter, 10, b, a)


@check("rule 4")
async def check_well_known_of_two_engines(spec: Spec) -> None:
    """The same well-known id on two engines is two counters."""
    async with mesh(spec, 3) as (a, b, c):
        first, second = b.counter(7), c.counter(7)
        for _ in range(3):
            await a.notify(a.counter_ref(b.address, 7))
        await a.notify(a.counter_ref(c.address, 7))
        await exactly(first, 3, b, a)
        await exactly(second, 1, c, a)


@check("bad input")
async def check_well_known_twice(spec: Spec) -> None:
    """An open well-known counter cannot be opened again; after it is closed, a new one begins at zero."""
    async with pair(spec) as (a, b):
        counter = b.counter(99)
        with refused("a second counter of id 99", BusyError):
            b.counter(99)
        await a.notify(a.counter_ref(b.address, 99))
        await counter.wait()
        counter.close()
        again = b.counter(99)
        claim(again.value == 0, f"a new counter of id 99 begins at {again.value}")
        await a.notify(a.counter_ref(b.address, 99))
        await exactly(again, 1, b, a)


@check("rule 4")
async def check_well_known_capacity(spec: Spec) -> None:
    """A well-known counter beyond the capacity is refused when it is opened; every open one receives its counts."""
    async with pair(spec) as (a, b):
        await ping(a, b)
        opened: list[ImmCounter] = []
        try:
            opened.extend(b.counter(number) for number in range(1 << 13))
        except AioTransferError:
            claim(len(opened) >= 256, f"only {len(opened)} well-known counters can be open")
        last = opened[-1]
        await a.notify(a.counter_ref(b.address, last.id))
        await ping(a, b)
        claim(last.value == 1, f"well-known counter {len(opened)} could be opened, and shows {last.value} of 1 count")


@check("rule 3")
async def check_notify_counts_once(spec: Spec) -> None:
    """Each notification is one count, also when hundreds are in flight."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        reference = a.counter_ref(b.address, counter.id)
        transfers = [a.submit_notify(reference) for _ in range(300)]
        for transfer in transfers:
            await transfer
        await exactly(counter, 300, b, a)


@check("rule 3")
async def check_counters_do_not_mix(spec: Spec) -> None:
    """Each of a hundred counters gets its own counts."""
    async with pair(spec) as (a, b):
        counters = [b.counter() for _ in range(100)]
        transfers = [
            a.submit_notify(a.counter_ref(b.address, counter.id))
            for index, counter in enumerate(counters)
            for _ in range(index % 5)
        ]
        for transfer in transfers:
            await transfer
        await ping(a, b)
        wrong = {index: one.value for index, one in enumerate(counters) if one.value != index % 5}
        claim(not wrong, f"counters that are to show their index modulo 5 show {wrong}")


@check("rule 3")
async def check_counts_for_closed_counter(spec: Spec) -> None:
    """Counts that arrive for a closed counter are dropped: no later counter receives them."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        reference = a.counter_ref(b.address, counter.id)
        await a.notify(reference)
        await counter.wait()
        counter.close()
        later = [b.counter() for _ in range(50)]
        await a.notify(reference)
        await ping(a, b)
        wrong = {one.id: one.value for one in later if one.value}
        claim(not wrong, f"a late count for {reference.id:#x} was given to {wrong}")


@check("rule 4")
async def check_counter_ids_are_not_reused_soon(spec: Spec) -> None:
    """Counters that are opened and closed repeatedly get ids that no recent counter had."""
    async with pair(spec) as (_, b):
        seen = set()
        for _ in range(2000):
            counter = b.counter()
            claim(counter.id & PRIVATE_COUNTER_BIT, f"a private counter has the well-known id {counter.id:#x}")
            claim(counter.id not in seen, f"id {counter.id:#x} was given out again within 2000 counters")
            seen.add(counter.id)
            counter.close()
        claim(b.statistics().counters == 0, f"{b.statistics().counters} counters are open")


@check("closing")
async def check_counter_close(spec: Spec) -> None:
    """Closing a counter wakes its waiters with ClosedError, can be repeated, and makes every use fail."""
    async with pair(spec) as (_, b):
        counter = b.counter()

        async def wait() -> None:
            with refused("a wait on a counter that is closed meanwhile", ClosedError):
                await counter.wait(3)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await until(lambda: counter.waiting == 3, "three tasks wait, and do not show")
            counter.close()
        counter.close()
        with refused("a wait on a closed counter", ClosedError):
            await counter.wait()
        with refused("wait_nowait on a closed counter", ClosedError):
            counter.wait_nowait()
        with refused("the value of a closed counter", ClosedError):
            _ = counter.value
        with refused("clearing a closed counter", ClosedError):
            counter.clear()


@check("rule 3")
async def check_counter_total_over_peers(spec: Spec) -> None:
    """Pages and notifications of several peers add up to exactly their number."""
    rng = spec.rng()
    async with mesh(spec, 3) as (b, a, c):
        target = await Memory.open(b, 2 * 64 * 500, rng)
        counter = b.counter()
        remote = target.remote(counter)
        sources = await Memory.open(a, 64 * 500, rng), await Memory.open(c, 64 * 500, rng)
        ids = range(500)

        async def flow(index: int) -> None:
            engine = (a, c)[index]
            pages = remote.pages(ids, 64, offset_nbytes=index * 64 * 500)
            await engine.write_pages(sources[index].region.pages(ids, 64), pages)
            for _ in range(25):
                await engine.notify(engine.counter_ref(b.address, counter.id))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flow, 0)
            tasks.start_soon(flow, 1)
        target.expect(0, sources[0].array)
        target.expect(64 * 500, sources[1].array)
        await ping(c, b)
        await exactly(counter, 1050, b, a)
