"""Mutation tests: random schedules catch every mutant soon, and pass without it."""

from __future__ import annotations

import itertools
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aio_transfer.testing import Spec
from aio_transfer.testing.fuzz.schedule import ScheduleError, batches, run_schedule, run_schedules

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from mutants import MUTANTS, applied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.anyio

SCHEDULES = 1000
SEED = 20261121


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Engines that are closed and killed log a lot."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MUTANTS)
async def test_mutant_is_caught(name: str, record_property: Callable[[str, object], None]) -> None:
    with applied(name) as bug:
        spec = Spec(backend="sim", name=f"sim with {name}", seed=SEED, options={"bug": bug} if bug else {})
        with pytest.raises(ScheduleError) as caught:
            await run_schedules(spec, SCHEDULES)
    record_property("seen", caught.value.seen)
    record_property("schedule", list(itertools.chain(*batches(SEED, SCHEDULES))).index(caught.value.seed) + 1)
    await run_schedule(Spec(backend="sim"), caught.value.seed)  # without the bug it succeeds
