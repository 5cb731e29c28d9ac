"""Bounded run of random schedules on the simulated fabric, on every event loop; ``nox -s chaos`` runs many more."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import pytest

from aio_transfer.testing.fuzz.generator import FABRIC_OPERATIONS, OPERATIONS, generate_schedule
from aio_transfer.testing.fuzz.mesh import SHAPES
from aio_transfer.testing.fuzz.operations.definitions import SIZES, Operation, format_operations
from aio_transfer.testing.fuzz.schedule import ScheduleError, batches, run_operations, run_schedule, run_schedules
from aio_transfer.testing.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS, SCHEDULES = 12, 140
"""On each of three loops: 5,040 schedules."""


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Engines that are closed and killed log a lot."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.anyio
@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(PARTS))
async def test_random_schedules_keep_the_contract(part: int, base: int, sim_seed: int | None) -> None:
    """A failure's report has the seed for ``--sim-seed``."""
    if sim_seed is not None:
        pytest.skip("--sim-seed replays one schedule")
    await run_schedules(Spec(backend="sim", seed=base + part), SCHEDULES)


@pytest.mark.anyio
@pytest.mark.timeout(60)
async def test_the_schedule_of_the_sim_seed_option_keeps_the_contract(sim_seed: int | None) -> None:
    if sim_seed is None:
        pytest.skip("no --sim-seed was given")
    await run_schedule(Spec(backend="sim"), sim_seed)


def test_a_seed_determines_its_schedule() -> None:
    first, again, other = (generate_schedule(seed, fabric=True) for seed in (77, 77, 78))
    assert first == again != other


def test_no_operation_needs_a_fabric_where_there_is_none() -> None:
    generated = {type(operation) for seed in range(300) for operation in generate_schedule(seed, fabric=False)}
    assert not generated & FABRIC_OPERATIONS


def test_every_kind_of_operation_is_generated() -> None:
    generated = {type(operation) for seed in range(2000) for operation in generate_schedule(seed, fabric=True)}
    assert generated == set(OPERATIONS)
    assert all(issubclass(kind, Operation) for kind in OPERATIONS)


def test_formatted_operations_are_python_source() -> None:
    operations = generate_schedule(5, fabric=True)
    names = {kind.__name__: kind for kind in OPERATIONS}
    assert eval(format_operations(operations), names) == operations  # noqa: S307 - users paste and run the text


def test_the_seeds_of_a_batch_share_a_mesh_shape() -> None:
    for count in (1, 7, 100, 5000):
        seeds = list(batches(3, count))
        assert sum(map(len, seeds)) == count
        assert len(set(itertools.chain(*seeds))) == count
        assert all(len({seed % len(SHAPES) for seed in batch}) == 1 for batch in seeds)
    assert {nics for shape in SHAPES for nics in shape} == {1, 2, 3, 4, 8}
    assert {len(shape) for shape in SHAPES} == {2, 3, 4, 5, 6}
    assert 0 in SIZES


@pytest.mark.anyio
async def test_the_error_of_a_schedule_has_all_that_repeats_it() -> None:
    spec = Spec(backend="sim", options={"bug": "count_before_payload"}, seed=1)
    with pytest.raises(ScheduleError) as caught:
        await run_schedules(spec, 200)
    error = caught.value
    text = str(error)
    assert f"schedule {error.seed} on sim" in text
    assert "rule 2" in text
    assert "alone" in text
    assert "operations = [" in text
    assert 1 <= error.schedule_number <= 200
    with pytest.raises(ScheduleError):
        for _ in range(40):  # trio runs ready tasks in random order
            await run_operations(spec, error.operations, shape=error.shape, seed=error.seed)
