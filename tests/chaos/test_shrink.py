"""Shrinking of failing schedules: the shortest part that still fails."""

from __future__ import annotations

import pytest

from aio_transfer.testing.fuzz.generator import generate_schedule
from aio_transfer.testing.fuzz.operations.definitions import CutPath, KillEngine, NotifyPeer, WriteSlice, YieldToLoop
from aio_transfer.testing.fuzz.schedule import ScheduleError, run_operations, run_schedule
from aio_transfer.testing.fuzz.shrink import ddmin, shrink
from aio_transfer.testing.spec import Spec

pytestmark = pytest.mark.anyio

CALM, NEEDED, ALSO = YieldToLoop(1), CutPath(0, 1), KillEngine(0)


@pytest.mark.parametrize("size", [2, 3, 7, 16, 33])
async def test_ddmin_finds_the_two_operations_that_fail_together(size: int) -> None:
    operations = (*[CALM] * (size // 2), NEEDED, *[CALM] * (size - size // 2 - 2), ALSO)
    tried = 0

    async def fails(some: tuple[object, ...]) -> bool:
        nonlocal tried
        tried += 1
        return NEEDED in some and ALSO in some

    assert await ddmin(operations, fails) == (NEEDED, ALSO)
    assert tried <= 8 * size


async def test_ddmin_keeps_all_operations_when_all_are_needed() -> None:
    operations = tuple(YieldToLoop(count) for count in range(6))

    async def fails(some: tuple[object, ...]) -> bool:
        return len(some) == 6

    assert await ddmin(operations, fails) == operations


async def test_ddmin_ends_with_one_operation_when_any_fails() -> None:
    async def fails(_: tuple[object, ...]) -> bool:
        return True

    assert await ddmin((CALM,), fails) == (CALM,)
    assert len(await ddmin((CALM, NEEDED, ALSO), fails)) == 1


async def first_failure(spec: Spec) -> ScheduleError:
    """Find a schedule that fails on engines of its own."""
    for seed in range(100):
        try:
            await run_schedule(spec, seed)
        except ScheduleError as error:
            return error
    raise AssertionError("none of 100 schedules fails")


@pytest.mark.timeout(120)
async def test_a_schedule_that_finds_a_bug_is_shrunk() -> None:
    spec = Spec(backend="sim", options={"bug": "count_before_payload"})
    error = await first_failure(spec)
    found = await shrink(spec, error.seed, repeats=5)
    assert found is not None
    assert 1 <= len(found.operations) < len(error.operations)
    assert "rule 2" in found.seen
    text = str(found)
    assert "operations = [" in text
    assert f"shape={found.shape}, seed={found.seed}" in text
    with pytest.raises(ScheduleError):
        for _ in range(10):
            await run_operations(spec, found.operations, shape=found.shape, seed=found.seed)


async def test_a_schedule_that_succeeds_is_not_shrunk() -> None:
    spec = Spec(backend="sim")
    operations = [WriteSlice(by=0, to=0, slot=0, size=0, at=0, quiet=0), NotifyPeer(by=1, to=0)]
    assert await shrink(spec, 4, operations, shape=(1, 2), repeats=1) is None
    assert all(operation for operation in generate_schedule(4, fabric=True))
