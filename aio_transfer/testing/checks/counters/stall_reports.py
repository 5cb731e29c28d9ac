# ruff: noqa: D401, PLR2004 - a docstring is the promise itself; what counts is due, is written out
"""What an engine says of itself: statistics, paths, and stalls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fixtures import exactly, mesh, pair, ping
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from aio_transfer.testing.spec import Spec


class Listener(logging.Handler):
    """Keeps what is logged about stalls, also where logging is turned down or off."""

    def __init__(self) -> None:
        """Listen from now on."""
        super().__init__()
        self.heard: list[logging.LogRecord] = []
        self._logger = logging.getLogger("aio_transfer.observability.stalls")
        self._before = self._logger.level, logging.root.manager.disable
        self._logger.setLevel(logging.WARNING)
        logging.disable(logging.NOTSET)
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.heard.append(record)

    def close(self) -> None:
        """Stop listening."""
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before[0])
        logging.disable(self._before[1])
        super().close()


@check("rule 8")
async def check_stall_is_reported_once(spec: Spec) -> None:
    """A counter that lacks counts for stall_s is reported once, with how many and from whom."""
    async with pair(spec, stall_s=0.04) as (a, b):
        counter = b.counter()
        await a.notify(a.counter_ref(b.address, counter.id))
        await ping(a, b)  # so it has arrived. A first connection may take longer than that, a stall of its own
        before = [one.statistics().stalls for one in (a, b)]
        listener = Listener()
        try:
            with anyio.move_on_after(0.25):
                await counter.wait(4)
        finally:
            listener.close()
        claim(len(listener.heard) == 1, f"one stall was reported {len(listener.heard)} times")
        record = listener.heard[0]
        text = record.getMessage()
        claim(getattr(record, "missing_counts", None) == 3, f"3 counts are missing, it says {text!r}")
        claim("a" in getattr(record, "sources", ""), f"they come from a, it says {text!r}")
        stalls = [one.statistics().stalls - gone for one, gone in zip((a, b), before, strict=True)]
        claim(stalls == [0, 1], f"a and b, which waits, count {stalls} stalls")


async def _cancel_once_reported(listener: Listener, number: int, due: int, scope: anyio.CancelScope) -> None:
    """End a wait when so many stalls of its counter were reported, or never will be; some time later, to see more."""
    with anyio.move_on_after(patient(2)):
        while sum(getattr(one, "counter", None) == number for one in listener.heard) < due:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    await anyio.sleep(0.05)
    scope.cancel()


@check("rule 8")
async def check_stall_of_another_wait_is_reported_too(spec: Spec) -> None:
    """A counter that moved on after a stall and stalls again is reported again."""
    listener = Listener()
    try:
        async with pair(spec, stall_s=0.03) as (a, b):
            counter, other = b.counter(), b.counter()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.wait, 1)  # something always waits
                for due in range(1, 3):
                    with anyio.CancelScope() as scope:
                        tasks.start_soon(_cancel_once_reported, listener, counter.id, due, scope)
                        await counter.wait(1)
                    await a.notify(a.counter_ref(b.address, counter.id))
                    await counter.wait(1)
                tasks.cancel_scope.cancel()
            of_it = [one for one in listener.heard if getattr(one, "counter", None) == counter.id]
            claim(len(of_it) == 2, f"two stalls of one counter were reported {len(of_it)} times")
    finally:
        listener.close()


@check("reports")
async def check_no_stall_while_it_moves(spec: Spec) -> None:
    """A wait whose counts keep coming is not reported as stalled."""
    listener = Listener()
    try:
        async with pair(spec, stall_s=patient(0.15)) as (a, b):
            counter = b.counter()
            reference = a.counter_ref(b.address, counter.id)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(counter.wait, 12)
                for _ in range(12):
                    with anyio.move_on_after(0.03):
                        await a.counter().wait()
                    await a.notify(reference)
            claim(not listener.heard, f"it moved every 30 ms, and was reported: {listener.heard}")
    finally:
        listener.close()


@check("reports")
async def check_statistics_of_drivers(spec: Spec) -> None:
    """The driver's totals say what has moved: writes, bytes and counts."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64 * 256, rng), await Memory.open(b, 64 * 256, rng)
        counter = b.counter()
        await ping(a, b)
        before, received = a.statistics().drivers[spec.backend], b.statistics().drivers[spec.backend]
        ids = range(64)
        await a.write_pages(source.region.pages(ids, 256), target.remote(counter).pages(ids, 256))
        await counter.wait(64)
        after, now = a.statistics().drivers[spec.backend], b.statistics().drivers[spec.backend]
        target.expect(0, source.array)
        moved = after["nbytes"] - before["nbytes"]
        claim(moved == 64 * 256, f"{64 * 256} B were written, and statistics say {moved}")
        claim(after["writes"] - before["writes"] >= 64, f"64 pages were written: {after['writes'] - before['writes']}")
        counted = now["counts"] - received["counts"]
        claim(counted == 64, f"64 counts came, and statistics say {counted}")


@check("reports")
async def check_statistics_of_engine(spec: Spec) -> None:
    """An engine's totals say how many regions, counters and peers there are."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        memories = [await Memory.open(a, 64, rng) for _ in range(3)]
        counters = [a.counter() for _ in range(4)]
        await a.connect(b.address)
        now = a.statistics()
        seen = (now.regions, now.counters, len(now.peers), now.transfers_in_flight, now.stalls)
        claim(seen == (3, 4, 1, 0, 0), f"3 regions, 4 counters, 1 peer: statistics say {seen}")
        claim(spec.backend in now.peers["b"], f"the path to b is {now.peers['b']!r}")
        counters[0].close()
        await memories[0].region.aclose()
        now = a.statistics()
        claim((now.regions, now.counters) == (2, 3), f"2 regions, 3 counters: {now.regions}, {now.counters}")


@check("reports")
async def check_statistics_name_every_peer(spec: Spec) -> None:
    """Every connected peer shows, also those that carry the same label, as all engines of one process do."""
    async with mesh(spec, 3, label="same") as (a, b, c):
        await a.connect(b.address)
        await a.connect(c.address)
        claim(len(a.statistics().peers) == 2, f"two peers are connected, statistics show {dict(a.statistics().peers)}")


@check("reports")
async def check_path_says_provider(spec: Spec) -> None:
    """A transfer's path names backend, provider, rails and protocol."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        transfer = a.submit_write(source.region[:], target.remote(counter)[:])
        await transfer
        target.expect(0, source.array)
        path = transfer.path
        if path is None:
            claim(path, "a transfer that has ended has no path")
            return
        claim(path.backend == spec.backend and path.provider, f"{path} names no backend or provider")
        claim(len(path.rails) == spec.rails and path.protocol, f"{path} names no rails or protocol")
        await exactly(counter, 1, b, a)
