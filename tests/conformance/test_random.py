"""Random schedules against the model, on every backend and loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aio_transfer.testing import run_schedule, run_schedules

if TYPE_CHECKING:
    from aio_transfer.testing import Spec

pytestmark = pytest.mark.anyio

PARTS, SCHEDULES = 5, 10


@pytest.mark.parametrize("part", range(PARTS))
async def test_schedules(spec: Spec, part: int) -> None:
    """Fifty schedules keep the contract; the report of one that does not has its seed."""
    await run_schedules(spec.seeded(spec.seed + part), SCHEDULES)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_known_schedule(spec: Spec, seed: int) -> None:
    """Seeds that once found something, or are to be looked into, go here."""
    await run_schedule(spec, seed)
