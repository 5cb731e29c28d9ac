"""Striping: a chunk in several pieces is not counted before it is complete, whatever else is in flight."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aio_transfer import ProviderError, RemoteRegion, UsageError
from aio_transfer.backends import sim
from aio_transfer.driver.records import ANY_REGION, PIECE_STRUCT, RUN_STRUCT, Op, PieceFlag, TransferId
from aio_transfer.testing import SimFabric

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from sim_ends import KIB, TRIO, UVLOOP, Ends, attach, ends, turns, until

pytestmark = pytest.mark.anyio

LARGE = 256 * KIB


@pytest.fixture(params=[UVLOOP, TRIO], ids=["uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


def has_half(end: Ends, begin: int) -> bool:
    """Whichever NIC it left by."""
    middle = begin + LARGE // 2
    return end.arrived(begin, middle) or end.arrived(middle, begin + LARGE)


async def test_halves_of_two_writes_are_no_count() -> None:
    fabric = SimFabric(seed=3, nics=2)
    async with ends(fabric, 2 * LARGE) as end:
        fabric.stall(end.a, 1)
        writes = [end.write(0, LARGE, end.counter), end.write(LARGE, 2 * LARGE, end.counter)]
        await until(lambda: has_half(end, 0) and has_half(end, LARGE))
        await turns(50)
        assert end.counter.value == 0
        fabric.resume(end.a)
        await end.counter.wait(2)
        assert end.arrived(0, 2 * LARGE)
        for write in writes:
            await write
        assert end.counter.value == 2


async def test_halves_by_two_senders_are_no_count() -> None:
    fabric = SimFabric(seed=4, nics=2)
    async with ends(fabric, LARGE) as end, fabric.engine(label="c", grace_s=0.1) as c:
        other = await attach(c, end.b, LARGE)
        fabric.stall(end.a, 1)
        fabric.stall(c, 1)
        reference = c.counter_ref(end.b.address, end.counter.id)
        writes = [
            end.write(0, LARGE, end.counter),
            c.submit_write(other.here[0:LARGE], other.remote[0:LARGE], counter=reference),
        ]
        await until(lambda: has_half(end, 0) and has_half(other, 0))
        await turns(50)
        assert end.counter.value == 0
        fabric.resume(end.a)
        fabric.resume(c)
        await end.counter.wait(2)
        assert end.arrived(0, LARGE)
        assert other.arrived(0, LARGE)
        for write in writes:
            await write


async def test_a_write_that_fails_half_way_leaves_no_part_of_a_count() -> None:
    fabric = SimFabric(seed=5, nics=2)
    async with ends(fabric, LARGE) as end:
        for _ in range(2):
            fabric.fail_completions(end.a, 1, nic=1)
            with pytest.raises(ProviderError):
                await end.write(0, LARGE, end.counter)
        end.counter.clear()
        assert end.counter.value == 0
        await end.write(0, LARGE, end.counter)
        await end.counter.wait(1)
        await turns(50)
        assert end.counter.value == 1
        assert end.arrived(0, LARGE)


async def test_a_slow_peer_delays_no_count_of_another() -> None:
    fabric = SimFabric(seed=6, nics=2)
    async with ends(fabric, LARGE) as end, fabric.engine(label="c", grace_s=0.1) as c:
        slow = c.allocate(LARGE)
        region = await c.register(slow)
        counter = c.counter()
        remote = RemoteRegion.from_bytes(bytes(region.descriptor(counter)))
        await end.a.connect(c.address)
        fabric.cut(end.a, c)
        scatter = end.a.submit_scatter([end.here[:], end.here[:]], [remote[:], end.remote[:]])
        await end.counter.wait(1)
        assert end.arrived(0, LARGE)
        assert not scatter.done
        fabric.heal(end.a, c)
        await scatter
        await counter.wait(1)


async def test_pages_that_are_cut_share_what_counts_them() -> None:
    fabric = SimFabric(seed=7, max_piece=KIB)
    async with ends(fabric, 600 * KIB) as end:
        before = end.a.statistics().drivers["sim"]["writes"]
        reference = end.a.counter_ref(end.b.address, end.counter.id)
        pages = range(300)
        await end.a.write_pages(end.here.pages(pages, 2 * KIB), end.remote.pages(pages, 2 * KIB), counter=reference)
        posted = end.a.statistics().drivers["sim"]["writes"] - before
        await end.counter.wait(300)
        await turns(20)
        assert end.counter.value == 300
        assert posted == 600 + 2, "256 counts, and 44"


def record(peer: int, after: int, first: int) -> bytes:
    return RUN_STRUCT.pack(peer, 0, Op.WRITE, ANY_REGION, ANY_REGION, first, 1, after)


@pytest.mark.parametrize("afters", [(1,), (0, 2), (0, 1, 2)], ids=str)
def test_a_run_follows_those_before_it_and_none_is_followed_twice(afters: tuple[int, ...]) -> None:
    driver = sim.create()
    driver.open()
    try:
        runs = b"".join(record(1, after, first) for first, after in enumerate(afters))
        pieces = PIECE_STRUCT.pack(0, 0, 0, 5, PieceFlag.IMMEDIATE) * len(afters)
        with pytest.raises(UsageError):
            driver.post(TransferId(1), runs, pieces)
    finally:
        driver.close()
