"""Fixtures of the checks: engines in one process, verified before they close, and waits on their conditions."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from aio_transfer.errors import ClosedError
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.guarded_memory import forget, registered
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.groups.group import PeerGroup
    from aio_transfer.testing.spec import Spec
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("exactly", "groups", "mesh", "pair", "ping", "turns", "until", "until_stopped", "verify_nothing_left")

_LABELS: Final = "abcdefghijklmnop"
_RELEASE_DEADLINE_S: Final = 3.0


@contextlib.asynccontextmanager
async def mesh(spec: Spec, count: int, **overrides: Any) -> AsyncIterator[list[TransferEngine]]:
    """Open ``count`` engines, labelled a, b, c …; after a successful block, verify that they hold nothing.

    :param overrides: keywords of ``TransferEngine`` for all engines
    """
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(spec.engine(**({"label": _LABELS[index]} | overrides)))
            for index in range(count)
        ]
        try:
            yield engines
            await verify_nothing_left(engines)
        finally:
            for engine in engines:
                forget(engine)


@contextlib.asynccontextmanager
async def pair(spec: Spec, **overrides: Any) -> AsyncIterator[tuple[TransferEngine, TransferEngine]]:
    """Open two engines; in most checks the first one sends."""
    async with mesh(spec, 2, **overrides) as engines:
        yield engines[0], engines[1]


async def verify_nothing_left(engines: list[TransferEngine]) -> None:
    """Close regions and connections, and verify that no native handle, region or transfer is left.

    :raises ConformanceError: something is left
    """
    still_open = [engine for engine in engines if _is_open(engine)]
    for engine in still_open:
        for memory in registered(engine):
            memory.verify("when the check was over")
            await memory.region.aclose()
        for other in engines:
            if other is not engine:
                await engine.disconnect(other.address)
    for engine in still_open:
        # A driver may delay its cleanup until there is other work; another check verifies that it need not.
        await (await engine.register(engine.allocate(1))).aclose()
    for engine in still_open:
        await _until_nothing_left(engine)


async def _until_nothing_left(engine: TransferEngine) -> None:
    await until(lambda: not describe_leftovers(engine), lambda: describe_leftovers(engine), _RELEASE_DEADLINE_S)


def describe_leftovers(engine: TransferEngine) -> str:
    """Describe what an engine without regions and peers still holds; empty if nothing."""
    now = engine.statistics()
    handles = {name: totals["handles"] for name, totals in now.drivers.items() if totals.get("handles")}
    parts = [f"{count} native handles of {name}" for name, count in handles.items()]
    if now.regions:
        parts.append(f"{now.regions} regions")
    if now.transfers_in_flight:
        parts.append(f"{now.transfers_in_flight} transfers")
    if now.peers:
        parts.append(f"connections to {', '.join(now.peers)}")
    return f"{engine!r} is left with {', '.join(parts)} after everything was taken back" if parts else ""


def _is_open(engine: TransferEngine) -> bool:
    try:
        engine._life.check()
    except ClosedError:
        return False
    return True


async def until(condition: Callable[[], object], seen: str | Callable[[], str], deadline_s: float = 2.0) -> None:
    """Yield to other tasks until a condition holds.

    :param seen: message of the error
    :raises ConformanceError: the condition does not hold within ``deadline_s``
    """
    with anyio.move_on_after(patient(deadline_s)):
        while not condition():
            await anyio.lowlevel.checkpoint()
        return
    raise ConformanceError(seen if isinstance(seen, str) else seen())


async def groups(engines: list[TransferEngine], name: str = "") -> list[PeerGroup]:
    """Form the group of all engines, and return its member on each engine."""
    return [
        await engine.group([other.address for other in engines if other is not engine], name=name) for engine in engines
    ]


async def turns(count: int) -> None:
    """Yield to other tasks for some turns of the event loop."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def until_stopped(transfer: Transfer) -> None:
    """Wait until a transfer has stopped, with or without an error."""
    await until(lambda: transfer.done, lambda: f"{transfer!r} does not stop", 5.0)


async def ping(one: TransferEngine, other: TransferEngine) -> None:
    """Send a count to the other engine and another back, so that everything sent before has had time to arrive."""
    there, back = other.counter(), one.counter()
    await one.notify(one.counter_ref(other.address, there.id))
    await there.wait()
    await other.notify(other.counter_ref(one.address, back.id))
    await back.wait()
    there.close()
    back.close()


async def exactly(
    counter: ImmCounter, count: int, here: TransferEngine, there: TransferEngine, *, total: int | None = None
) -> None:
    """Check that ``count`` counts arrive, and no more once everything that was sent has had time to arrive.

    :param here: the engine that owns the counter
    :param there: the engine that raises it; the caller has awaited its transfers
    :param total: the running total afterwards; by default ``count``
    """
    due = count if total is None else total
    try:
        with anyio.fail_after(patient(3)):
            await counter.wait(count)
    except TimeoutError:
        raise ConformanceError(f"the counter stays at {counter.value}, and {due} counts were due") from None
    await ping(there, here)
    claim(counter.value == due, f"the counter went on to {counter.value}, and {due} counts were due")
