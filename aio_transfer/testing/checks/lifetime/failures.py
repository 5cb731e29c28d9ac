"""Checks of counts that cannot arrive: their waiters get an error, and counts that have arrived stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aio_transfer.errors import AioTransferError, PeerLostError, StaleRegionError, TransferAbortedError
from aio_transfer.testing.assertions import ConformanceError, claim, refused
from aio_transfer.testing.fixtures import exactly, mesh, pair, ping, until
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.regions.region import RemoteRegion
    from aio_transfer.testing.spec import Spec


async def expect_wait_error(counter: ImmCounter, count: int, kind: type[AioTransferError], why: str) -> None:
    """Check that a wait soon ends with an error."""
    try:
        with anyio.fail_after(patient(3)):
            with refused(f"a wait for {count} counts {why}", kind):
                await counter.wait(count)
    except TimeoutError:
        raise ConformanceError(f"a wait for {count} counts {why} has not ended, with {counter.value} there") from None


async def closed_target(b: TransferEngine, counter: ImmCounter | int, spec: Spec) -> RemoteRegion:
    """Return a descriptor of a closed region."""
    target = await Memory.open(b, 64, spec.rng())
    remote = target.remote(counter)
    await target.region.aclose()
    return remote


@check("rule 8")
async def check_failed_write_wakes_receiver(spec: Spec) -> None:
    """A write that fails at its sender wakes the receiver that waits for its count."""
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 64, spec.rng())
        counter = b.counter()
        remote = await closed_target(b, counter, spec)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_wait_error, counter, 1, TransferAbortedError, "of a write that fails")
            with refused("a write to a closed region", StaleRegionError):
                await a.write(source.region[:], remote[:])
        await expect_wait_error(counter, 1, TransferAbortedError, "after a write has failed")
        claim(counter.value == 0, f"the failed write counts {counter.value}")
        counter.clear()
        await a.notify(a.counter_ref(b.address, counter.id))
        await exactly(counter, 1, b, a)


@check("rule 8")
async def check_failure_keeps_what_came(spec: Spec) -> None:
    """Counts that arrived before the failure can still be consumed; only waits for more fail."""
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 64, spec.rng())
        counter = b.counter()
        remote = await closed_target(b, counter, spec)
        for _ in range(3):
            await a.notify(a.counter_ref(b.address, counter.id))
        with refused("a write to a closed region", StaleRegionError):
            await a.write(source.region[:], remote[:])
        await expect_wait_error(counter, 4, TransferAbortedError, "of which one can never come")
        # The failure takes another path than the counts, and may arrive before them.
        await until(lambda: counter.value == 3, lambda: f"the counter stays at {counter.value}")
        await counter.wait(2)
        counter.wait_nowait()
        claim(counter.value == 3, f"three counts came, and {counter.value} show")


@check("rule 8")
async def check_failure_before_well_known_is_opened(spec: Spec) -> None:
    """A failure for a well-known counter that is not open yet is kept, as its counts are."""
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 64, spec.rng())
        remote = await closed_target(b, 1234, spec)
        with refused("a write to a closed region", StaleRegionError):
            await a.write(source.region[:], remote[:])
        await ping(a, b)
        await expect_wait_error(
            b.counter(1234), 1, TransferAbortedError, "whose write failed before the counter was opened"
        )


@check("rule 8")
async def check_goodbye_wakes_receiver(spec: Spec) -> None:
    """A sender that closes after some of its counts wakes the waiters for the rest."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        await a.notify(a.counter_ref(b.address, counter.id))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_wait_error, counter, 2, PeerLostError, "from a peer that closes")
            await until(lambda: counter.waiting, "no task waits")
            await a.aclose()
        await expect_wait_error(counter, 2, PeerLostError, "from a peer that has closed")
        counter.wait_nowait()


@check("rule 8")
async def check_goodbye_wakes_who_named_its_source(spec: Spec) -> None:
    """A counter that names its sources fails when one closes, also if that one never wrote."""
    async with pair(spec) as (a, b):
        counter = b.counter(sources=[a.address])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_wait_error, counter, 1, PeerLostError, "from a source that closes")
            await until(lambda: counter.waiting, "no task waits")
            await b.connect(a.address)
            await a.aclose()


@check("rule 8")
async def check_source_that_is_gone_already(spec: Spec) -> None:
    """A counter fails if its source closed before the counter was opened."""
    async with pair(spec) as (a, b):
        await b.connect(a.address)
        await a.aclose()
        await expect_wait_error(b.counter(sources=[a.address]), 1, PeerLostError, "from a source that closed before")


@check("rule 8")
async def check_promise_before_well_known_is_opened(spec: Spec) -> None:
    """A sender of a well-known counter that closes wakes its waiters, also when it sent before that was opened."""
    async with pair(spec) as (a, b):
        await a.notify(a.counter_ref(b.address, 55))
        await ping(a, b)
        counter = b.counter(55)
        claim(counter.value == 1, f"one count came before, and {counter.value} show")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                expect_wait_error, counter, 2, PeerLostError, "of a well-known counter from a peer that closes"
            )
            await until(lambda: counter.waiting, "no task waits")
            await a.aclose()


@check("rule 8")
async def check_goodbye_spares_other_counters(spec: Spec) -> None:
    """A peer that closes does not disturb a counter that only other peers have promised to raise."""
    async with mesh(spec, 3) as (a, b, c):
        theirs, ours = b.counter(), b.counter()
        await a.notify(a.counter_ref(b.address, theirs.id))
        await c.notify(c.counter_ref(b.address, ours.id))
        await a.aclose()
        await expect_wait_error(theirs, 2, PeerLostError, "from a peer that has closed")
        await c.notify(c.counter_ref(b.address, ours.id))
        await exactly(ours, 2, b, c)


@check("rule 4")
async def check_goodbye_loses_no_count(spec: Spec) -> None:
    """Transfers submitted before the engine closed arrive and count, also without an await."""
    rng = spec.rng()
    for _ in range(5):
        async with pair(spec) as (a, b):
            source, target = await Memory.open(a, 1 << 18, rng), await Memory.open(b, 1 << 18, rng)
            counter = b.counter()
            ids = range(64)
            a.submit_write_pages(source.region.pages(ids, 4096), target.remote(counter).pages(ids, 4096))
            await a.aclose()
            try:
                with anyio.fail_after(patient(3)):
                    await counter.wait(64)
            except (TimeoutError, AioTransferError) as error:
                seen = f"{counter.value} of 64 counts came of a sender that closed: {error!r}"
                raise ConformanceError(seen) from None
            target.expect(0, source.array)
            target.verify("when all counts had come")


@check("rule 8")
async def check_errors_are_fresh(spec: Spec) -> None:
    """Every awaiter gets its own exception object with the same message, so that tracebacks do not mix."""
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 64, spec.rng())
        remote = await closed_target(b, 5, spec)
        transfer = a.submit_write(source.region[:], remote[:])
        errors: list[BaseException] = []

        async def wait() -> None:
            try:
                await transfer
            except StaleRegionError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(wait)
        claim(len(errors) == 5, f"{len(errors)} of 5 awaiters got an error")
        claim(len({id(error) for error in errors}) == 5, "several awaiters got one and the same exception object")
        claim(len({str(error) for error in errors}) == 1, f"their messages differ: {errors}")
        claim(isinstance(transfer.exception(), StaleRegionError), f"exception() is {transfer.exception()!r}")


@check("rule 8")
async def check_submit_to_nobody(spec: Spec) -> None:
    """Every transfer submitted to a closed peer ends with PeerLostError, and releases its lease."""
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, spec.rng()), await Memory.open(b, 64, spec.rng())
        remote = target.remote(3)
        await b.aclose()
        attempts = {
            "write": a.submit_write(source.region[:], remote[:]),
            "write_pages": a.submit_write_pages(source.region.pages([0], 8), remote.pages([0], 8)),
            "notify": a.submit_notify(a.counter_ref(remote, 3)),
            "read": a.submit_read(source.region[:], remote[:]),
        }
        for operation, transfer in attempts.items():
            with refused(f"a {operation} to a closed engine", PeerLostError) as refusal, anyio.fail_after(patient(3)):
                await transfer
            claim("b" in str(refusal), f"the error of the {operation} does not name its peer: {refusal}")
        claim(source.region.leases == 0, f"{source.region.leases} leases are still out")
