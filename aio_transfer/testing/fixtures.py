"""Engines for a check: opened together in one process, and looked over before they close."""

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
    from aio_transfer.testing.spec import Spec
    from aio_transfer.transfers.transfer import Transfer

__all__ = ("done", "exactly", "level", "mesh", "pair", "ping", "until")

_LABELS: Final = "abcdefghijklmnop"
_LEVEL_S: Final = 3.0


@contextlib.asynccontextmanager
async def mesh(spec: Spec, count: int, **overrides: Any) -> AsyncIterator[list[TransferEngine]]:
    """Open ``count`` engines, labelled a, b, c …; when the block ends well, demand that nothing is left on them.

    :param overrides: keywords of ``TransferEngine``, for all of them
    """
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(spec.engine(**({"label": _LABELS[index]} | overrides)))
            for index in range(count)
        ]
        try:
            yield engines
            await level(engines)
        finally:
            for engine in engines:
                forget(engine)


@contextlib.asynccontextmanager
async def pair(spec: Spec, **overrides: Any) -> AsyncIterator[tuple[TransferEngine, TransferEngine]]:
    """Open two engines; in checks the first is mostly the sender."""
    async with mesh(spec, 2, **overrides) as engines:
        yield engines[0], engines[1]


async def level(engines: list[TransferEngine]) -> None:
    """Take everything back, and demand that no native handle, region or transfer is left.

    :raises ConformanceError: something is
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
        # Some work, since a driver may put tidying up off until there is some; a check of its own is against that.
        await (await engine.register(engine.allocate(1))).aclose()
    for engine in still_open:
        await _until_level(engine)


async def _until_level(engine: TransferEngine) -> None:
    await until(lambda: not leftovers(engine), lambda: leftovers(engine), _LEVEL_S)


def leftovers(engine: TransferEngine) -> str:
    """Say what an engine without regions and peers still holds; nothing is as it should be."""
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
    """Let other tasks run until a condition holds.

    :param seen: what to say when it never does
    :raises ConformanceError: it does not within ``deadline_s``
    """
    with anyio.move_on_after(patient(deadline_s)):
        while not condition():
            await anyio.lowlevel.checkpoint()
        return
    raise ConformanceError(seen if isinstance(seen, str) else seen())


async def done(transfer: Transfer) -> None:
    """Wait until a transfer has stopped, well or not."""
    await until(lambda: transfer.done, lambda: f"{transfer!r} does not stop", 5.0)


async def ping(one: TransferEngine, other: TransferEngine) -> None:
    """Send a count there and another back: what was to arrive before has had every chance to."""
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
    """Demand that ``count`` counts arrive, and no more, also after everything sent has had time to come.

    :param here: whose counter it is
    :param there: who raises it; its transfers are awaited by the caller before
    :param total: what the running total is then; by default ``count``
    """
    due = count if total is None else total
    try:
        with anyio.fail_after(patient(3)):
            await counter.wait(count)
    except TimeoutError:
        raise ConformanceError(f"the counter stays at {counter.value}, and {due} counts were due") from None
    await ping(there, here)
    claim(counter.value == due, f"the counter went on to {counter.value}, and {due} counts were due")
