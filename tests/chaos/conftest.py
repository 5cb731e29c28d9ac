"""Options and fixtures of the tests of random schedules."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("asyncio", {"use_uvloop": False}),
    ("asyncio", {"use_uvloop": True}),
    ("trio", {}),
)
LOOP_IDS = ("asyncio", "asyncio+uvloop", "trio")
BASE: pytest.StashKey[int] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option that repeats one schedule; the report of a failure has its seed."""
    parser.addoption("--sim-seed", type=int, default=None, help="run only this schedule on the simulated fabric")


def pytest_configure(config: pytest.Config) -> None:
    """Set the seed of all schedules: CI always runs the same ones, and ``nox -s chaos`` random ones."""
    config.stash[BASE] = int(os.environ.get("AIO_TRANSFER_SEED", "1"))


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed."""
    return f"chaos seed: {config.stash[BASE]} (AIO_TRANSFER_SEED)"


@pytest.fixture
def base(request: pytest.FixtureRequest) -> int:
    """Return the seed that all others follow from."""
    return request.config.stash[BASE]


@pytest.fixture
def sim_seed(request: pytest.FixtureRequest) -> int | None:
    """Return the one seed to replay, if any."""
    given: int | None = request.config.getoption("--sim-seed", default=None)  # with other paths there is no option
    return given


@pytest.fixture(params=LOOPS, ids=LOOP_IDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run every test on every loop."""
    loop: tuple[str, dict[str, Any]] = request.param
    return loop


@pytest.fixture(scope="session", autouse=True)
def _warm_loops() -> Iterator[None]:
    """Let every event loop open what it keeps for the life of the process (the signal pipe of libuv)."""
    for name, options in LOOPS:
        anyio.run(anyio.lowlevel.checkpoint, backend=name, backend_options=options)
    yield
