"""With ``progress="spin"`` a wait looks at its counter for a moment before the event loop goes to sleep."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from aio_transfer import CounterRef, ImmCounter, TransferEngine, WouldBlock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio
SPIN = {"shm": {"progress": "spin"}}


@asynccontextmanager
async def spinning() -> AsyncIterator[tuple[TransferEngine, ImmCounter, CounterRef]]:
    """Two engines, of which the first can raise a counter of the other at once."""
    async with TransferEngine(backend="shm", options=SPIN) as a, TransferEngine(backend="shm", options=SPIN) as b:
        counter = b.counter()
        reference = a.counter_ref(b.address, counter.id)
        await a.notify(reference)
        await counter.wait()
        yield a, counter, reference


async def test_a_count_that_comes_meanwhile_needs_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    async with spinning() as (a, counter, reference):
        native = counter._table.poll

        def while_we_look(number: int, counts: int) -> int:
            assert native(number, counts) == counts - 1, "it was to come now"
            a.submit_notify(reference)
            return native(number, counts)

        with monkeypatch.context() as patch:
            patch.setattr(counter._table, "poll", while_we_look)
            patch.setattr(counter._table.loop, "waiter", lambda: pytest.fail("it went to sleep"))
            await counter.wait()
        assert (counter.value, counter.waiting) == (2, 0)


async def test_the_look_ends_and_the_loop_sleeps() -> None:
    async with spinning() as (a, counter, reference):
        native = counter._table.poll
        since = time.perf_counter()
        assert native(counter.id, 7) == 1
        assert 1e-4 <= time.perf_counter() - since < 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(counter.wait)
            await anyio.sleep(0.01)
            assert counter.waiting == 1
            a.submit_notify(reference)
        assert counter.value == 2


async def test_who_comes_second_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async with spinning() as (a, counter, reference), anyio.create_task_group() as tasks:
        tasks.start_soon(counter.wait)
        await anyio.sleep(0.01)
        monkeypatch.setattr(counter._table, "poll", lambda *_: pytest.fail("another waits for longer"))
        tasks.start_soon(counter.wait)
        await anyio.sleep(0.01)
        for _ in range(2):
            a.submit_notify(reference)


async def test_nobody_lingers_unasked() -> None:
    for backend, options in (("shm", {}), ("sim", {"sim": {"progress": "spin"}})):
        async with TransferEngine(backend=backend, options=options) as engine:
            table = engine.counter()._table
            assert table.poll == table._read_total


async def test_what_has_come_is_taken_without_parking(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TransferEngine(backend="shm") as a, TransferEngine(backend="shm") as b:
        counter = b.counter()
        for _ in range(3):
            await a.notify(a.counter_ref(b.address, counter.id))
        monkeypatch.setattr(counter._table.loop, "waiter", lambda: pytest.fail("it went to sleep"))
        await counter.wait(2)
        await counter.wait()
        with pytest.raises(WouldBlock):
            counter.wait_nowait()
