"""Cancellation that only asyncio has: ``Task.cancel``, ``wait_for``, ``gather``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aio_transfer.testing import Memory, Spec, claim, exactly, pair
from aio_transfer.testing.fixtures import turns

if TYPE_CHECKING:
    from collections.abc import Callable

SHM = Spec(backend="shm", seed=20251120)


@pytest.mark.asyncio
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8])
async def test_a_cancelled_write_goes_on_and_counts_once(after: int) -> None:
    rng = SHM.rng()
    async with pair(SHM) as (a, b):
        source, target = await Memory.open(a, 1 << 20, rng), await Memory.open(b, 1 << 20, rng)
        counter = b.counter()
        await a.connect(b.address)
        transfer = a.submit_write(source.region[:], target.remote(counter)[:])
        task = asyncio.create_task(transfer.wait())
        await turns(after)
        cancelled = task.cancel()
        if cancelled:
            with pytest.raises(asyncio.CancelledError):
                await task
            claim(transfer.done or source.region.leases == 1, "the source is not leased, and the write goes on")
        await transfer
        target.expect(0, source.array)
        await exactly(counter, 1, b, a)


@pytest.mark.asyncio
async def test_a_write_cancelled_before_its_first_step_counts_nothing() -> None:
    rng = SHM.rng()
    async with pair(SHM) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        task = asyncio.create_task(a.write(source.region[:], target.remote(counter)[:]))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await exactly(counter, 0, b, a)


@pytest.mark.asyncio
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
async def test_a_cancelled_wait_consumes_nothing(after: int) -> None:
    async with pair(SHM) as (a, b):
        counter = b.counter()
        for _ in range(30):
            task = asyncio.create_task(counter.wait())
            await turns(1)
            before = counter.value
            await a.notify(a.counter_ref(b.address, counter.id))
            await turns(after)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                await counter.wait()  # the count that the cancelled wait left
            claim(counter.value == before + 1, f"the total went from {before} to {counter.value} by one notification")
        await exactly(counter, 0, b, a, total=30)


@pytest.mark.asyncio
async def test_a_wait_cancelled_in_the_turn_it_is_granted_loses_no_count() -> None:
    async with pair(SHM) as (a, b):
        first, second = b.counter(), b.counter()
        for index in range(30):
            # The same turn of the loop grants the wait and cancels its task, in either order.
            task = asyncio.create_task(first.wait())
            await turns(1)
            await a.notify(a.counter_ref(b.address, second.id))
            await a.notify(a.counter_ref(b.address, first.id))
            if index % 2:
                await second.wait()
                task.cancel()
            else:
                task.cancel()
                await second.wait()
            try:
                await task
            except asyncio.CancelledError:
                await first.wait()
        await exactly(first, 0, b, a, total=30)


@pytest.mark.asyncio
async def test_timeouts_of_asyncio_end_a_wait_without_consuming() -> None:
    async with pair(SHM) as (a, b):
        counter = b.counter()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(counter.wait(), 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await counter.wait(2)
        claim(counter.waiting == 0, f"{counter.waiting} timed-out waits are still in the queue")
        await a.notify(a.counter_ref(b.address, counter.id))
        await asyncio.wait_for(counter.wait(), 2)


@pytest.mark.asyncio
async def test_gather_awaits_one_transfer_many_times() -> None:
    rng = SHM.rng()
    async with pair(SHM) as (a, b):
        source, target = await Memory.open(a, 1 << 20, rng), await Memory.open(b, 1 << 20, rng)
        transfer = a.submit_write(source.region[:], target.remote()[:])
        tasks = [asyncio.create_task(transfer.wait()) for _ in range(10)]
        await turns(1)
        for task in tasks[::3]:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        wrong = [one for one in ended if one is not None and not isinstance(one, asyncio.CancelledError)]
        claim(not wrong, f"awaiters ended with {wrong}")
        target.expect(0, source.array)
        await transfer


@pytest.mark.asyncio
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_cancelling_a_task_closes_its_engine(after: int) -> None:
    async with pair(SHM) as (_, b):

        async def live() -> None:
            async with SHM.engine(label="x") as x:
                await x.connect(b.address)
                await asyncio.Event().wait()

        task = asyncio.create_task(live())
        await turns(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.asyncio
async def test_a_close_that_is_cancelled_twice_still_closes() -> None:
    rng = SHM.rng()
    async with pair(SHM) as (a, b):
        source, target = await Memory.open(a, 4 << 20, rng), await Memory.open(b, 4 << 20, rng)
        await a.connect(b.address)
        transfer = a.submit_write(source.region[:], target.remote()[:])
        task = asyncio.create_task(a.aclose())
        await turns(1)
        task.cancel()
        await turns(1)
        task.cancel()
        await asyncio.wait([task])
        claim("closed" in repr(a) and transfer.done, f"after a close that was cancelled twice: {a!r}, {transfer!r}")
        if transfer.exception() is None:
            target.expect(0, source.array)


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["region", "barrier", "connect", "send"])
async def test_cancelled_calls_leave_the_engine_usable(what: str) -> None:
    rng = SHM.rng()
    async with pair(SHM) as (a, b):
        source, target = await Memory.open(a, 1 << 20, rng), await Memory.open(b, 1 << 20, rng)
        group = await a.group([b.address])
        transfer = a.submit_write(source.region[:], target.remote()[:])
        waits: dict[str, Callable[[], object]] = {
            "region": source.region.aclose,
            "barrier": group.barrier,
            "connect": lambda: a.connect(b.address),
            "send": lambda: a.send(b.address, b"x"),
        }
        for after in range(6):
            task = asyncio.ensure_future(waits[what]())  # type: ignore[arg-type]
            await turns(after)
            task.cancel()
            await asyncio.wait([task])
        await transfer
        group.close()
        target.expect(0, np.asarray(source.array))
        await source.region.aclose()
        claim(a.statistics().regions == 0, "the region is not closed")
