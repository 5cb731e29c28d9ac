"""Batches that do not fit into the caches go past them: every byte, of any length and alignment, counts after it."""

from __future__ import annotations

import numpy as np
import pytest

from aio_transfer.testing import Spec
from aio_transfer.testing.fixtures import pair
from aio_transfer.testing.guarded_memory import Memory

MIB = 1 << 20
ROOM = 17 * MIB  # streaming begins at 16 MiB per batch

pytestmark = pytest.mark.anyio
SPEC = Spec(backend="shm")


@pytest.mark.parametrize("nbytes", [16 * MIB - 1, 16 * MIB, 16 * MIB + 77])
@pytest.mark.parametrize(("begin", "far"), [(0, 0), (1, 0), (0, 3), (13, 50)])
async def test_one_write(nbytes: int, begin: int, far: int) -> None:
    rng = np.random.default_rng(nbytes)
    async with pair(SPEC) as (a, b):
        source, target = await Memory.open(a, ROOM, rng), await Memory.open(b, ROOM, rng)
        counter = b.counter()
        transfer = a.submit_write(source.region[begin : begin + nbytes], target.remote(counter)[far : far + nbytes])
        await counter.wait()
        assert target.holds(far, source.array[begin : begin + nbytes])
        await transfer
        target.expect(far, source.array[begin : begin + nbytes])
        target.verify()


@pytest.mark.parametrize("page", [1500, 4095, 4096, 4161, 65_521])
@pytest.mark.parametrize("begin", [0, 5])
async def test_pages(page: int, begin: int) -> None:
    rng = np.random.default_rng(page)
    count = 16 * MIB // page + 1
    async with pair(SPEC) as (a, b):
        source = await Memory.open(a, begin + count * page, rng)
        target = await Memory.open(b, begin + count * page, rng)
        source.fill(0xA5)
        target.fill(0)
        counter = b.counter()
        ids, far = rng.permutation(count), rng.permutation(count)
        here = source.region.pages(ids, page, offset_nbytes=begin)
        there = target.remote(counter).pages(far, page, offset_nbytes=begin)
        transfer = a.submit_write_pages(here, there)
        counted = 0
        while counted < count:
            await counter.wait(min(64, count - counted))
            counted = counter.value
            whole = target.array[begin:].reshape(count, page)
            assert int((whole[:, [0, page // 2, -1]] == 0xA5).all(axis=1).sum()) >= counted
        await transfer
        target.expect(begin, source.array[begin:])
        target.verify()


async def test_read() -> None:
    rng = np.random.default_rng(1)
    async with pair(SPEC) as (a, b):
        source, target = await Memory.open(b, ROOM, rng), await Memory.open(a, ROOM, rng)
        await a.read(target.region[: ROOM - 9], source.remote()[9:])
        target.expect(0, source.array[9:])
        target.verify()


@pytest.mark.parametrize("page", [4096, 1 << 20])
async def test_while_it_finds_out_which_way_is_faster(page: int) -> None:
    rng = np.random.default_rng(page)
    nbytes = 16 * MIB
    async with pair(SPEC) as (a, b):
        source, target = await Memory.open(a, nbytes, rng), await Memory.open(b, nbytes, rng)
        counter = b.counter()
        ids = rng.permutation(nbytes // page)
        for round_number in range(1, 13):
            source.fill(round_number)
            transfer = a.submit_write_pages(source.region.pages(ids, page), target.remote(counter).pages(ids, page))
            await counter.wait(len(ids))
            assert (target.array == round_number).all()
            await transfer
        target.expect(0, source.array)
