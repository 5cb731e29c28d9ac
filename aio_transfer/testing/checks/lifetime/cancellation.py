"""Checks of cancellation and exceptions: tasks are released at once, and nothing is corrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aio_transfer.errors import AioTransferError, PeerLostError
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.fixtures import exactly, pair, ping, until_stopped
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.testing.spec import Spec


class Interrupt(BaseException):
    """A base exception, as KeyboardInterrupt is one."""


@check("rule 7")
async def check_cancel_before_post(spec: Spec) -> None:
    """A write in a cancelled scope is either complete and counted once, or not performed and not counted."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4096, rng), await Memory.open(b, 4096, rng)
        counter = b.counter()
        remote = target.remote(counter)
        for connected in (False, True):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await a.write(source.region[:], remote[:])
            claim(scope.cancelled_caught or connected, "a write that waits for a connection was not cancelled")
            await until_no_leases(source)
            await ping(a, b)
            if counter.value:
                target.expect(0, source.array)
            target.verify(f"with {counter.value} counts of a cancelled write")
            source.fill(0x33)
        claim(counter.value <= 2, f"two cancelled writes gave {counter.value} counts")


async def until_no_leases(source: Memory) -> None:
    """Wait until no transfer holds a lease."""
    with anyio.fail_after(patient(3)):
        while source.region.leases:
            await anyio.lowlevel.checkpoint()


@check("rule 7")
async def check_cancel_in_flight(spec: Spec) -> None:
    """Cancelling the await of a large write frees the task at once; the write goes on, leased, and counts once."""
    rng = spec.rng()
    size = 8 << 20
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, size, rng), await Memory.open(b, size, rng)
        counter = b.counter()
        remote = target.remote(counter)
        await a.connect(b.address)
        for _ in range(3):
            transfer = a.submit_write(source.region[:], remote[:])
            with anyio.CancelScope() as scope:
                scope.cancel()
                await transfer
            claim(scope.cancelled_caught or transfer.done, "the await was not cancelled, and the write goes on")
            claim(transfer.done or source.region.leases == 1, "the source is not leased, and the write goes on")
            await transfer
        target.expect(0, source.array)
        await exactly(counter, 3, b, a)


@check("rule 7")
async def check_cancel_in_the_tick_of_completion(spec: Spec) -> None:
    """Cancelling around the moment of completion loses neither the transfer's end nor its count."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64 * 40, rng), await Memory.open(b, 64 * 40, rng)
        counter = b.counter()
        remote = target.remote(counter)
        ids = range(40)  # more than are posted inline
        rounds = 40
        for index in range(rounds):
            transfer = a.submit_write_pages(source.region.pages(ids, 64), remote.pages(ids, 64))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(transfer.wait)
                for _ in range(index % 8):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            await until_stopped(transfer)
            await transfer
            claim(source.region.leases == 0, f"round {index}: a lease is out after the end")
        target.expect(0, source.array)
        await exactly(counter, 40 * rounds, b, a)


@check("rule 7")
async def check_cancel_one_awaiter(spec: Spec) -> None:
    """Cancelling one of several awaiters of a transfer disturbs none of the others."""
    rng = spec.rng()
    returned = 0
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4 << 20, rng), await Memory.open(b, 4 << 20, rng)
        transfer = a.submit_write(source.region[:], target.remote()[:])

        async def wait(scope: anyio.CancelScope) -> None:
            nonlocal returned
            with scope:
                await transfer
                returned += 1

        scopes = [anyio.CancelScope() for _ in range(9)]
        async with anyio.create_task_group() as tasks:
            for scope in scopes:
                tasks.start_soon(wait, scope)
            await anyio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
        claim(returned == 4, f"5 of 9 awaiters were cancelled, and {returned} returned")
        target.expect(0, source.array)
        await transfer


@check("rule 7")
async def check_cancel_connect(spec: Spec) -> None:
    """A connect that was cancelled at any moment does not disturb a later one."""
    async with pair(spec) as (a, b):
        for turns in range(12):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.connect, b.address)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(patient(3)):
                peer = await a.connect(b.address)
            claim(peer.state.value == "connected", f"cancelled after {turns} turns, then connected: {peer!r}")
            await ping(a, b)
            await a.disconnect(b.address)


@check("rule 7")
async def check_cancel_disconnect(spec: Spec) -> None:
    """A cancelled disconnect still ends the connection, and the engines can connect again."""
    async with pair(spec) as (a, b):
        for turns in range(8):
            await a.connect(b.address)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.disconnect, b.address)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(patient(3)):
                while True:
                    try:
                        await a.connect(b.address)
                    except PeerLostError:  # the disconnect is still in progress
                        await anyio.lowlevel.checkpoint()
                    else:
                        break
                await ping(a, b)


@check("rule 7")
async def check_cancel_group(spec: Spec) -> None:
    """A cancelled group() leaves no counter open, and the name can be used again."""
    async with pair(spec) as (a, b):
        for turns in range(8):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.group, [b.address])
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            if a.statistics().counters == 0:  # it was cancelled before its end
                group = await a.group([b.address])
                group.close()
            else:
                return
        claim(a.statistics().counters == 0, f"{a.statistics().counters} counters are left")


@check("rule 8")
async def check_deadline_on_everything(spec: Spec) -> None:
    """Every wait can have a deadline, and the engine works after it has passed."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        group = await a.group([b.address])
        arriving = b.messages()
        waits: dict[str, Callable[[], Awaitable[object]]] = {
            "counter": counter.wait,
            "barrier": group.barrier,
            "messages": arriving.__anext__,
        }
        for what, wait in waits.items():
            with anyio.move_on_after(0.005) as scope:
                await wait()
            claim(scope.cancelled_caught, f"a wait on {what} ended, though nothing came")
        await a.notify(a.counter_ref(b.address, counter.id))
        await exactly(counter, 1, b, a)


@check("closing")
async def check_exception_in_the_block(spec: Spec) -> None:
    """An exception that leaves the engine's block closes the engine, also under traffic, and is raised unchanged."""
    for kind in (RuntimeError, KeyError, Interrupt):
        async with pair(spec) as (_, b):
            target = await Memory.open(b, 4 << 20, spec.rng())
            counter = b.counter()
            ids = range(1024)
            try:
                async with spec.engine(label="x") as x:
                    memory = x.allocate(4 << 20)
                    memory[:] = 0x42
                    source = await x.register(memory)
                    await x.connect(b.address)
                    transfer = x.submit_write_pages(source.pages(ids, 4096), target.remote(counter).pages(ids, 4096))
                    raise kind("in the middle")  # noqa: TRY301 - it has to leave the engine's block
            except (Exception, Interrupt) as error:  # noqa: BLE001 - its type is checked
                claim(type(error) is kind, f"a {kind.__name__} in the block came out as {error!r}")
            claim(transfer.done and source.leases == 0, "a transfer outlives its engine")
            claim("closed" in repr(x), f"{x!r} is not closed")
            if transfer.exception() is None:
                target.expect(0, memory)
                await exactly_after_goodbye(counter, 1024)
            else:
                raise ConformanceError(f"a transfer that had a grace of 1 s failed: {transfer.exception()}")


async def exactly_after_goodbye(counter: ImmCounter, count: int) -> None:
    """Check that all counts of a peer that has closed arrive."""
    try:
        with anyio.fail_after(patient(3)):
            await counter.wait(count)
    except (AioTransferError, TimeoutError) as error:
        raise ConformanceError(f"{counter.value} of {count} counts of a closed peer: {error!r}") from None
    claim(counter.value == count, f"{counter.value} counts, and {count} were due")


@check("closing")
async def check_cancelled_block(spec: Spec) -> None:
    """Cancelling the scope around an engine's block at any moment closes the engine."""
    async with pair(spec) as (_, b):
        for turns in (0, 1, 2, 3, 5, 8, 13, 21):
            async with anyio.create_task_group() as tasks:

                async def live() -> None:
                    async with spec.engine(label="x") as x:
                        await x.connect(b.address)
                        await ping(x, b)
                        await anyio.Event().wait()

                tasks.start_soon(live)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        counter = b.counter()
        async with spec.engine(label="y") as y:
            await y.notify(y.counter_ref(b.address, counter.id))
            await exactly(counter, 1, b, y)


@check("closing")
async def check_cancelled_close(spec: Spec) -> None:
    """A cancelled close still closes the engine."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 1 << 20, rng), await Memory.open(b, 1 << 20, rng)
        transfer = a.submit_write(source.region[:], target.remote()[:])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await a.aclose()
        claim("closed" in repr(a), f"after a cancelled aclose: {a!r}")
        claim(transfer.done, "a transfer outlives its engine")
        if transfer.exception() is None:
            target.expect(0, source.array)
