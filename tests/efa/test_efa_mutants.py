"""Mutants of ``tests/conformance`` and ``tests/mutants`` on emulated devices: the same checks catch them.

Mutants that are switches of the simulated fabric are left out; wrong drivers replace some of them.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aio_transfer.driver import backend_registry
from aio_transfer.testing import Spec, check_backend
from aio_transfer.testing.fuzz.schedule import ScheduleError, run_schedules
from aio_transfer.testing.plugin import reason_unavailable

sys.path.insert(0, str(Path(__file__).parent.parent / "conformance"))  # importmode=importlib puts no folder there
sys.path.insert(0, str(Path(__file__).parent.parent / "mutants"))

import mutants
import test_kit
import wrong_drivers

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES = int(os.environ.get("EFA_EMULATOR_DEVICES", "1"))
OPTIONS = {"provider": "efa", "rails": DEVICES}
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.skipif("EFA_EMULATOR_LOG" not in os.environ, reason="no emulated devices here: nox -s efa"),
    pytest.mark.skipif(
        DEVICES < 4 or "EFA_EMULATOR_BYTES_PER_SECOND" not in os.environ,
        reason="some are seen only where a chunk is cut between NICs, and these take their time",
    ),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # what a broken engine left open
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """Let the provider make what it keeps for the life of the process: it is no leak of a check's."""
    assert not reason_unavailable(Spec(backend="libfabric", options=OPTIONS))


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Engines that are closed and killed log a lot."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", test_kit.MUTANTS)
async def test_wrong_driver_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, checks = test_kit.MUTANTS[name]
    monkeypatch.setitem(backend_registry.LOADED, "wrong", wrong_drivers.backend(name))
    spec = Spec(backend="wrong", options=OPTIONS, name=name, rails=DEVICES, seed=1)
    for _ in range(10):  # some show only where a thread is slow enough
        report = await check_backend(spec, only=checks)
        if report.failures:
            return
    pytest.fail(f"{name} passed {checks}")


CAUGHT_BY = {
    "weight off by one": "pages_large",
    "stripe counted before all pieces are there": "write_payload_before_count",
    "stripe counted by every piece": "write_sizes",
    "counter dropped when early": "barrier_holds_everybody",
    "tail bytes of a stripe dropped": "read_sizes",
    "zero-length page not counted": "pages_of_nothing_count",
    "counter id reused": "counts_for_closed_counter",
    "poison not delivered": "failed_write_wakes_receiver",
}
"""By which check of the kit; the others by random schedules."""
SWITCHES = {name for name, (switch, _) in mutants.MUTANTS.items() if switch}
"""Mutants of the simulated fabric: no emulated device accepts a stale key, for example."""


@pytest.mark.parametrize("name", [name for name in mutants.MUTANTS if name not in SWITCHES])
async def test_mutant_is_caught(name: str) -> None:
    spec = Spec(backend="libfabric", options=OPTIONS, name=f"efa with {name}", rails=DEVICES, seed=20261121)
    with mutants.applied(name):
        if name not in CAUGHT_BY:
            with pytest.raises(ScheduleError):
                await run_schedules(spec, 200)
            return
        for _ in range(10):
            if (await check_backend(spec, only=[CAUGHT_BY[name]])).failures:
                return
    pytest.fail(f"{name} passed {CAUGHT_BY[name]}")
