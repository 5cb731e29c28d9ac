"""Checks of paged writes: page i goes to page i, each counts once, and gaps stay unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fixtures import exactly, pair
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from aio_transfer.testing.spec import Spec


def expect_pages(target: Memory, source: Memory, to: Sequence[int], of: Sequence[int], nbytes: int) -> None:
    """Expect the result of a paged write."""
    for there, here in zip(to, of, strict=True):
        target.expect(there * nbytes, source.array[here * nbytes : (here + 1) * nbytes])


@check("rule 3")
async def check_pages_permuted(spec: Spec) -> None:
    """Pages in any order arrive at their targets; other pages stay unchanged."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 256 * 512, rng), await Memory.open(b, 256 * 512, rng)
        counter = b.counter()
        of, to = rng.permutation(256)[:100].tolist(), rng.permutation(256)[:100].tolist()
        await a.write_pages(source.region.pages(of, 512), target.remote(counter).pages(to, 512))
        expect_pages(target, source, to, of, 512)
        await exactly(counter, 100, b, a)
        target.verify()
        source.verify()


@check("rule 3")
async def check_pages_of_nothing_count(spec: Spec) -> None:
    """A page of zero bytes counts like any other."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        ids = [0] * 37
        local = source.region.pages(ids, 0, stride_nbytes=8)
        await a.write_pages(local, target.remote(counter).pages(ids, 0, stride_nbytes=8))
        await exactly(counter, 37, b, a)


@check("bad input")
async def check_pages_empty_list(spec: Spec) -> None:
    """An empty list of pages is complete at once, with zero counts, even without a connection."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        forms: tuple[ArrayLike, ...] = ([], (), np.empty(0, np.int64), range(0))
        for none in forms:
            transfer = a.submit_write_pages(source.region.pages(none, 16), target.remote(counter).pages(none, 16))
            claim(transfer.done and transfer.count == 0, f"{transfer!r} of no pages is not complete at once")
            await transfer
        claim(source.region.leases == 0, "no pages hold a lease")
        await exactly(counter, 0, b, a)


@check("rule 3")
async def check_pages_repeated(spec: Spec) -> None:
    """A page named several times counts each time."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4096, rng), await Memory.open(b, 4096, rng)
        counter = b.counter()
        await a.write_pages(source.region.pages([3] * 64, 64), target.remote(counter).pages([5, 6] * 32, 64))
        expect_pages(target, source, [5, 6], [3, 3], 64)
        await exactly(counter, 64, b, a)


@check("rule 3")
async def check_pages_stride_and_offset(spec: Spec) -> None:
    """Stride and offset place pages on either side; with stride 1 ids are byte offsets."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 8192, rng), await Memory.open(b, 8192, rng)
        counter = b.counter()
        of, to = [0, 9, 4, 20], [1, 1000, 5000, 8092]
        local = source.region.pages(of, 100, stride_nbytes=333, offset_nbytes=11)
        await a.write_pages(local, target.remote(counter).pages(to, 100, stride_nbytes=1))
        for there, here in zip(to, of, strict=True):
            target.expect(there, source.array[11 + 333 * here : 111 + 333 * here])
        await exactly(counter, 4, b, a)


@check("rule 3")
async def check_pages_many(spec: Spec) -> None:
    """Twenty thousand small pages in one call: none is missing, none counts twice."""
    rng = spec.rng()
    count = 20_000
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, count * 16, rng), await Memory.open(b, count * 16, rng)
        counter = b.counter()
        order = rng.permutation(count)
        await a.write_pages(source.region.pages(order, 16), target.remote(counter).pages(order[::-1], 16))
        moved = np.empty((count, 16), np.uint8)
        moved[order[::-1]] = source.array.reshape(count, 16)[order]
        target.expect(0, moved.reshape(-1))
        await exactly(counter, count, b, a)


@check("rule 3")
async def check_pages_large(spec: Spec) -> None:
    """Pages larger than one piece count once each, around every boundary."""
    rng = spec.rng()
    sizes = [size + 1 for size in spec.boundaries]
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 3 * sizes[-1], rng), await Memory.open(b, 3 * sizes[-1], rng)
        counter = b.counter()
        remote = target.remote(counter)
        for index, size in enumerate(sizes):
            await a.write_pages(source.region.pages([2, 0, 1], size), remote.pages([0, 1, 2], size))
            await counter.wait(3)
            expect_pages(target, source, [0, 1, 2], [2, 0, 1], size)
            target.verify(f"after three pages of {size} B")
            claim(counter.value == 3 * index + 3, f"{counter.value} counts, {3 * index + 3} due: pages of {size} B")
        await exactly(counter, 0, b, a, total=3 * len(sizes))


@check("bad input")
async def check_pages_forms_of_ids(spec: Spec) -> None:
    """Ids may be a list, tuple, range or array of any integer type."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 1024, rng), await Memory.open(b, 1024, rng)
        counter = b.counter()
        remote = target.remote(counter)
        forms = ([1, 2], (1, 2), range(1, 3), np.array([1, 2], np.int8), np.array([1, 2], np.uint64))
        for ids in forms:
            await a.write_pages(source.region.pages(ids, 64), remote.pages(ids, 64))
        target.expect(64, source.array[64:192])
        await exactly(counter, 2 * len(forms), b, a)


@check("rule 7")
async def check_pages_ids_are_copied(spec: Spec) -> None:
    """Changing the array of ids after the submit does not change the transfer."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64 * 256, rng), await Memory.open(b, 64 * 256, rng)
        counter = b.counter()
        ids = np.arange(32)
        transfer = a.submit_write_pages(source.region.pages(ids, 256), target.remote(counter).pages(ids, 256))
        ids += 32  # submitted, and not posted: there is no connection
        await transfer
        target.expect(0, source.array[: 32 * 256])
        await exactly(counter, 32, b, a)


@check("rule 2")
async def check_pages_never_ahead(spec: Spec) -> None:
    """While pages arrive, the counter never exceeds the number of pages that are visible."""
    rng = spec.rng()
    count, size = 2000, 512
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, count * size, rng), await Memory.open(b, count * size, rng)
        source.fill(0xA5)
        target.fill(0)
        counter = b.counter()
        remote = target.remote(counter)
        ids = rng.permutation(count)
        transfer = a.submit_write_pages(source.region.pages(ids, size), remote.pages(ids, size))
        counted = 0
        while counted < count:
            await counter.wait(min(100, count - counted))
            counted = counter.value
            # The count is read before the memory: what it shows must be there, more may be.
            there = int((target.array.reshape(count, size) == 0xA5).all(axis=1).sum())
            claim(there >= counted, f"{counted} pages were counted when {there} were there")
        await transfer
        target.expect(0, source.array)


@check("rule 3")
async def check_pages_uncounted(spec: Spec) -> None:
    """Pages with counted=False do not count."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4096, rng), await Memory.open(b, 4096, rng)
        counter = b.counter()
        ids = range(64)
        remote = target.remote(counter).pages(ids, 64)
        await a.write_pages(source.region.pages(ids, 64), remote, counted=False)
        target.expect(0, source.array)
        await exactly(counter, 0, b, a)
