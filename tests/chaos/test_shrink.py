"""A failing schedule is cut down to what fails."""

from __future__ import annotations

import pytest

from aio_transfer.testing.fuzz.generator import draw
from aio_transfer.testing.fuzz.operations.definitions import Cut, Kill, Notify, Turns, Write
from aio_transfer.testing.fuzz.schedule import ScheduleError, run_moves, run_schedule
from aio_transfer.testing.fuzz.shrink import ddmin, shrink
from aio_transfer.testing.spec import Spec

pytestmark = pytest.mark.anyio

CALM, NEEDED, ALSO = Turns(1), Cut(0, 1), Kill(0)


@pytest.mark.parametrize("size", [2, 3, 7, 16, 33])
async def test_ddmin_finds_the_pair(size: int) -> None:
    moves = (*[CALM] * (size // 2), NEEDED, *[CALM] * (size - size // 2 - 2), ALSO)
    tried = 0

    async def fails(some: tuple[object, ...]) -> bool:
        nonlocal tried
        tried += 1
        return NEEDED in some and ALSO in some

    assert await ddmin(moves, fails) == (NEEDED, ALSO)
    assert tried <= 8 * size


async def test_ddmin_keeps_what_is_all_needed() -> None:
    moves = tuple(Turns(count) for count in range(6))

    async def fails(some: tuple[object, ...]) -> bool:
        return len(some) == 6

    assert await ddmin(moves, fails) == moves


async def test_ddmin_of_one() -> None:
    async def fails(_: tuple[object, ...]) -> bool:
        return True

    assert await ddmin((CALM,), fails) == (CALM,)
    assert len(await ddmin((CALM, NEEDED, ALSO), fails)) == 1


async def first_failure(spec: Spec) -> ScheduleError:
    """Look for a schedule that fails on engines of its own."""
    for seed in range(100):
        try:
            await run_schedule(spec, seed)
        except ScheduleError as error:
            return error
    raise AssertionError("none of 100 schedules fails")


@pytest.mark.timeout(120)
async def test_shrinks_a_bug() -> None:
    """A write before which half a schedule happened: what is left is about that write."""
    spec = Spec(backend="sim", options={"bug": "count_before_payload"})
    error = await first_failure(spec)
    found = await shrink(spec, error.seed, repeats=5)
    assert found is not None
    assert 1 <= len(found.moves) < len(error.moves)
    assert "rule 2" in found.seen
    text = str(found)
    assert "moves = [" in text
    assert f"shape={found.shape}, seed={found.seed}" in text
    with pytest.raises(ScheduleError):
        for _ in range(10):
            await run_moves(spec, found.moves, shape=found.shape, seed=found.seed)


async def test_nothing_to_shrink() -> None:
    spec = Spec(backend="sim")
    moves = [Write(by=0, to=0, slot=0, size=0, at=0, quiet=0), Notify(by=1, to=0)]
    assert await shrink(spec, 4, moves, shape=(1, 2), repeats=1) is None
    assert all(move for move in draw(4, fabric=True))
