"""Every check of the kit, on every backend that runs here, on every event loop."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from aio_transfer.errors import BackendUnavailableError, UsageError
from aio_transfer.selection import open_one
from aio_transfer.testing import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("asyncio", {"debug": True, "use_uvloop": False}),
    ("asyncio", {"use_uvloop": True}),
    ("trio", {}),
)
LOOP_IDS = ("asyncio", "asyncio+uvloop", "trio")

SPECS = (
    Spec(backend="shm", same_host=True),
    Spec(backend="libfabric", options={"provider": "tcp"}, name="libfabric-tcp"),
    Spec(backend="sim", options={"nics": 3, "mtu": 1500, "depth": 64}, same_host=True, rails=3),
    # The default: two drivers in every engine, shm carries, and counters are sums over both.
    Spec(backend="shm", name="auto", settings={"backend": "auto", "options": {"libfabric": {"provider": "tcp"}}}),
)
"""A backend joins by adding its own here."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a failed run be repeated: its report names the seed."""
    parser.addoption("--conformance-seed", type=int, default=None, help="seed of all randomness in the checks")


def pytest_configure(config: pytest.Config) -> None:
    """Pick one seed for the whole run."""
    given = config.getoption("--conformance-seed", default=None)
    seed = given if given is not None else int(os.environ.get("AIO_TRANSFER_SEED", secrets.randbits(32)))
    config.stash[SEED] = seed


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed."""
    return f"conformance seed: {config.stash[SEED]}"


SEED: pytest.StashKey[int] = pytest.StashKey()


def unavailable(spec: Spec) -> str:
    """Say why a backend cannot run here; nothing if it can."""
    try:
        one = open_one(spec.backend, spec.options)
    except (BackendUnavailableError, UsageError) as error:
        return str(error)
    one.driver.close()
    return ""


@pytest.fixture(params=LOOPS, ids=LOOP_IDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run every test on every loop."""
    loop: tuple[str, dict[str, Any]] = request.param
    return loop


@pytest.fixture(scope="session", params=SPECS, ids=str)
def spec(request: pytest.FixtureRequest) -> Spec:
    """Run every test on every backend; skipped, with the reason, where one is not to be had."""
    found: Spec = request.param
    reason = unavailable(found)
    if reason:
        pytest.skip(reason)
    return found.seeded(request.config.stash[SEED])


@pytest.fixture(scope="session", autouse=True)
def _warm_loops() -> Iterator[None]:
    """Let every loop make what it keeps for the life of the process (libuv's signal pipe)."""
    for name, options in LOOPS:
        anyio.run(anyio.lowlevel.checkpoint, backend=name, backend_options=options)
    yield
