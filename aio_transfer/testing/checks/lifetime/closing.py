# ruff: noqa: D401, PLR2004 - a docstring is the promise itself; what counts is due, is written out
"""Closing, and what comes after it."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aio_transfer.errors import (
    AioTransferError,
    ClosedError,
    PeerLostError,
    ProviderError,
    TransferAbortedError,
    UsageError,
)
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import mesh, pair, until
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_transfer.testing.spec import Spec


@check("bad input")
async def check_closed_engine_refuses(spec: Spec) -> None:
    """Everything one can ask of a closed engine is refused with ClosedError; closing again is fine."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        remote, region, counter = target.remote(1), source.region, a.counter()
        local, pages, reference = region[:], region.pages([0], 8), a.counter_ref(b.address, 1)
        await a.aclose()
        await a.aclose()
        calls: dict[str, Callable[[], object]] = {
            "submit_write": lambda: a.submit_write(local, remote[:]),
            "submit_write_pages": lambda: a.submit_write_pages(pages, remote.pages([0], 8)),
            "submit_scatter": lambda: a.submit_scatter([local], [remote[:]]),
            "submit_notify": lambda: a.submit_notify(reference),
            "submit_read": lambda: a.submit_read(local, remote[:]),
            "counter": a.counter,
            "statistics": a.statistics,
            "counter.value": lambda: counter.value,
            "counter.wait_nowait": counter.wait_nowait,
            "descriptor": region.descriptor,
            "slice": lambda: region[:8],
        }
        for what, call in calls.items():
            with refused(f"{what} on a closed engine", ClosedError):
                call()
        awaits: dict[str, Callable[[], Awaitable[object]]] = {
            "register": lambda: a.register(bytearray(8)),
            "connect": lambda: a.connect(b.address),
            "disconnect": lambda: a.disconnect(b.address),
            "group": lambda: a.group([b.address]),
            "send": lambda: a.send(b.address, b""),
            "write": lambda: a.write(local, remote[:]),
            "notify": lambda: a.notify(reference),
            "counter.wait": counter.wait,
        }
        for what, make in awaits.items():
            with refused(f"{what} on a closed engine", ClosedError):
                await make()
        await region.aclose()
        with refused("entering a closed engine", UsageError):
            await a.__aenter__()


@check("bad input")
async def check_engine_that_was_never_entered(spec: Spec) -> None:
    """An engine that was not entered refuses use, and can be closed."""
    engine = spec.engine()
    with refused("a counter of an engine that was not entered", UsageError):
        engine.counter()
    with refused("statistics of an engine that was not entered", UsageError):
        engine.statistics()
    await engine.aclose()
    with refused("statistics of an engine that was closed without being entered", ClosedError):
        engine.statistics()
    with refused("entering a closed engine", UsageError):
        await engine.__aenter__()
    async with spec.engine() as entered:
        with refused("entering an engine twice", UsageError):
            await entered.__aenter__()


@check("rule 8")
async def check_close_ends_transfers(spec: Spec) -> None:
    """Closing waits for transfers under way within its grace; afterwards every one of them has stopped."""
    rng = spec.rng()
    size = 16 << 20
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, size, rng), await Memory.open(b, size, rng)
        counter = b.counter()
        await a.connect(b.address)
        transfer = a.submit_write(source.region[:], target.remote(counter)[:])
        await a.aclose()
        claim(transfer.done and source.region.leases == 0, f"{transfer!r} is under way on a closed engine")
        await transfer
        await counter.wait()
        target.expect(0, source.array)
        target.verify()


@check("rule 8")
async def check_close_without_grace(spec: Spec) -> None:
    """Without grace, transfers under way end with a typed error, after nothing of them moves any more."""
    rng = spec.rng()
    size = 32 << 20
    async with pair(spec, grace_s=0) as (a, b):
        source, target = await Memory.open(a, size, rng), await Memory.open(b, size, rng)
        remote = target.remote()
        await a.connect(b.address)
        await a.write(source.region[:1], remote[:1])
        transfers = [a.submit_write(source.region[:], remote[:]) for _ in range(4)]
        await a.aclose()
        source.array[:] = 0x99
        held = target.array.copy()
        claim(all(one.done for one in transfers), f"{transfers} are under way on a closed engine")
        failures = [one.exception() for one in transfers]
        typed = all(one is None or isinstance(one, TransferAbortedError | PeerLostError) for one in failures)
        claim(typed, f"they ended with {failures}")
        claim(bool((held != 0x99).any()) or held.nbytes == 0, "bytes of a source that was free already arrived")
        await anyio.lowlevel.checkpoint()
        claim(bool((target.array == held).all()), "the target changes after its writer was closed")
        target.expect(0, held)


@check("rule 8")
async def check_close_wakes_waiters(spec: Spec) -> None:
    """Closing wakes whoever waits on the engine's counters, barriers and connections, with typed errors."""
    ended: list[str] = []
    async with pair(spec) as (a, b):
        counter = a.counter()
        group = await a.group([b.address])
        other = await b.group([a.address])

        async def expect(what: str, wait: Callable[[], Awaitable[None]], *kinds: type[AioTransferError]) -> None:
            with refused(f"{what} on an engine that closes", *kinds):
                await wait()
            ended.append(what)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect, "a counter's wait", counter.wait, ClosedError)
            tasks.start_soon(expect, "a barrier", group.barrier, ClosedError, PeerLostError, TransferAbortedError)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            await a.aclose()
            await until(lambda: len(ended) == 2, lambda: f"only {ended or 'nobody'} was woken by the close")
        other.close()


@check("closing")
async def check_close_both_at_once(spec: Spec) -> None:
    """Engines that all close at once, with traffic between them, all close in time."""
    rng = spec.rng()
    for _ in range(3):
        async with mesh(spec, 4) as engines:
            memories = [await Memory.open(engine, 4096, rng) for engine in engines]
            remotes = [memory.remote() for memory in memories]
            for index, engine in enumerate(engines):
                for other in range(4):
                    if other != index:
                        piece = slice(other * 1024, other * 1024 + 256)
                        at = slice(index * 1024, index * 1024 + 256)
                        engine.submit_write(memories[index].region[piece], remotes[other][at])
            with anyio.fail_after(patient(4)):
                async with anyio.create_task_group() as tasks:
                    for engine in engines:
                        tasks.start_soon(engine.aclose)


@check("closing")
async def check_close_while_connecting(spec: Spec) -> None:
    """Either side may close while a connection is being made: the other gets a typed error, nobody hangs."""
    for turns in range(0, 24, 2):
        for closer in (0, 1):
            async with pair(spec, grace_s=0.2) as engines:

                async def connect() -> None:
                    with contextlib.suppress(PeerLostError, ClosedError):
                        await engines[0].connect(engines[1].address)

                with anyio.fail_after(patient(3)):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(connect)
                        for _ in range(turns):
                            await anyio.lowlevel.checkpoint()
                        await engines[closer].aclose()


@check("rule 8")
async def check_close_with_deferred_transfers(spec: Spec) -> None:
    """Transfers that still wait for a connection when the engine closes end with a typed error."""
    rng = spec.rng()
    async with pair(spec, grace_s=0) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        remote = target.remote()
        transfers = [a.submit_write(source.region[:], remote[:], counted=False) for _ in range(3)]
        await a.aclose()
        for transfer in transfers:
            claim(transfer.done, f"{transfer!r} is under way on a closed engine")
            if transfer.exception() is None:
                target.expect(0, source.array)
            else:
                with refused("a transfer that was never posted", TransferAbortedError, PeerLostError):
                    await transfer
        claim(source.region.leases == 0, f"{source.region.leases} leases are out")


@check("closing")
async def check_close_from_another_task(spec: Spec) -> None:
    """An engine can be closed from another task than the one that opened it, and twice at once."""
    async with pair(spec) as (a, b):
        await a.connect(b.address)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.aclose)
            tasks.start_soon(a.aclose)
        claim("closed" in repr(a), f"after two closes at once: {a!r}")


@check("bad input")
async def check_engine_that_cannot_open(spec: Spec) -> None:
    """An engine that cannot listen where it should is refused with a typed error, and holds nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for what, settings in {
            "a port that is taken": {"port": port},
            "an address of another machine": {"host": "192.0.2.1"},
            "a host that does not exist": {"host": "host.invalid"},
        }.items():
            with refused(f"listening on {what}", ProviderError):
                async with spec.engine(**settings):
                    pass
