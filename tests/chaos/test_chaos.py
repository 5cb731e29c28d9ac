"""A bounded slice of the random schedules on the simulated fabric, on every loop; ``nox -s chaos`` plays many more."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import pytest

from aio_transfer.testing.fuzz.generator import FABRIC_MOVES, MOVES, draw
from aio_transfer.testing.fuzz.mesh import SHAPES
from aio_transfer.testing.fuzz.operations.definitions import SIZES, Move, show
from aio_transfer.testing.fuzz.schedule import ScheduleError, batches, run_moves, run_schedule, run_schedules
from aio_transfer.testing.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS, SCHEDULES = 12, 140
"""On each of three loops: 5,040 schedules."""


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Engines that are closed and killed have much to say."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.anyio
@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(PARTS))
async def test_schedules(part: int, base: int, sim_seed: int | None) -> None:
    """The contract holds; a failure's report has the seed for ``--sim-seed``."""
    if sim_seed is not None:
        pytest.skip("--sim-seed replays one schedule")
    await run_schedules(Spec(backend="sim", seed=base + part), SCHEDULES)


@pytest.mark.anyio
@pytest.mark.timeout(60)
async def test_replay(sim_seed: int | None) -> None:
    """The schedule of ``--sim-seed``, alone."""
    if sim_seed is None:
        pytest.skip("no --sim-seed was given")
    await run_schedule(Spec(backend="sim"), sim_seed)


def test_same_seed_same_moves() -> None:
    assert draw(77, fabric=True) == draw(77, fabric=True) != draw(78, fabric=True)
    assert not {type(move) for seed in range(300) for move in draw(seed, fabric=False)} & FABRIC_MOVES


def test_every_kind_is_drawn() -> None:
    drawn = {type(move) for seed in range(2000) for move in draw(seed, fabric=True)}
    assert drawn == set(MOVES)
    assert all(issubclass(kind, Move) for kind in MOVES)


def test_shown_moves_are_python() -> None:
    moves = draw(5, fabric=True)
    names = {kind.__name__: kind for kind in MOVES}
    assert eval(show(moves), names) == moves  # noqa: S307 - that it can be pasted is the point


def test_batches_share_shapes() -> None:
    for count in (1, 7, 100, 5000):
        seeds = list(batches(3, count))
        assert sum(map(len, seeds)) == count
        assert len(set(itertools.chain(*seeds))) == count
        assert all(len({seed % len(SHAPES) for seed in batch}) == 1 for batch in seeds)
    assert {nics for shape in SHAPES for nics in shape} == {1, 2, 3, 4, 8}
    assert {len(shape) for shape in SHAPES} == {2, 3, 4, 5, 6}
    assert 0 in SIZES


@pytest.mark.anyio
async def test_failure_says_how_to_repeat_it() -> None:
    spec = Spec(backend="sim", options={"bug": "count_before_payload"}, seed=1)
    with pytest.raises(ScheduleError) as caught:
        await run_schedules(spec, 200)
    error = caught.value
    text = str(error)
    assert f"schedule {error.seed} on sim" in text
    assert "rule 2" in text
    assert "alone" in text
    assert "moves = [" in text
    assert 1 <= error.turn <= 200
    with pytest.raises(ScheduleError):
        for _ in range(40):  # trio runs ready tasks in random order
            await run_moves(spec, error.moves, shape=error.shape, seed=error.seed)
