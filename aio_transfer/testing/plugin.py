"""Pytest for the authors of backends: one test case per check and event loop. Only this module needs pytest.

.. code-block:: python

    from aio_transfer.testing import Spec
    from aio_transfer.testing.plugin import contract

    test_contract = contract(Spec(backend="mine"))

That is a whole test file. With ``pytest -p aio_transfer.testing.plugin`` the report begins with the seed, and
``--conformance-seed`` gives it again.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import traceback
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import anyio.lowlevel
import pytest

from aio_transfer.driver.backend_registry import open_driver
from aio_transfer.errors import BackendUnavailableError
from aio_transfer.testing.assertions import ConformanceError
from aio_transfer.testing.fuzz.schedule import run_schedule, run_schedules
from aio_transfer.testing.registry import select
from aio_transfer.testing.runner import run_check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from aio_transfer.testing.registry import Check
    from aio_transfer.testing.spec import Spec

__all__ = (
    "LOOPS",
    "SEED",
    "contract",
    "pytest_addoption",
    "pytest_configure",
    "pytest_configure_node",
    "pytest_report_header",
    "seed_of",
    "unavailable",
)

_DEBUG: Final = os.environ.get("AIO_TRANSFER_ASYNCIO_DEBUG") != "0"
"""asyncio's checks of its own, unless they are refused by name: they double the time of an emulated processor."""
LOOPS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "asyncio": ("asyncio", {"debug": _DEBUG, "use_uvloop": False}),
    "asyncio+uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
"""What ``anyio.run`` takes, per event loop."""
SEED: Final = pytest.StashKey[int]()
"""Where the run's seed is kept."""
_TO_WORKER: Final = "aio_transfer_seed"
_NEEDS: Final = {"asyncio+uvloop": "uvloop", "trio": "trio"}
_PER_CASE: Final = 10
"""Schedules in one test case: some seconds, so that a report says soon that it is alive."""


def contract(
    *specs: Spec,
    only: str | Iterable[str] | None = None,
    loops: Iterable[str] = tuple(LOOPS),
    schedules: int = 50,
    seeds: Iterable[int] = (),
) -> Callable[..., None]:
    """Make a test function of the kit; give it a name that pytest collects.

    A case is skipped, with the reason, where the backend cannot run here, does not offer what the check needs, or the
    event loop is not installed. A failure names the broken rule, what was seen, and the seed.

    :param only: names of checks, or of topics; ``()`` for none
    :param loops: keys of :data:`LOOPS`
    :param schedules: how many random schedules to run besides
    :param seeds: schedules to run every time, since they once found something
    :raises KeyError: there is no such check or event loop
    """
    found = [pytest.param(loop, marks=_installed(loop)) for loop in loops]
    cases = (*map(_of_check, select(only)), *_of_schedules(schedules), *map(_of_seed, seeds))
    reason = functools.cache(lambda index: unavailable(specs[index]))

    @pytest.mark.parametrize("loop", found)
    @pytest.mark.parametrize("case", cases, ids=str)
    @pytest.mark.parametrize("index", range(len(specs)), ids=[str(spec) for spec in specs])
    def keeps_the_contract(request: pytest.FixtureRequest, index: int, case: _Case, loop: str) -> None:
        spec = specs[index].seeded(seed_of(request.config))
        why = reason(index) or case.missing(spec)
        if why:
            pytest.skip(why)
        verdict = _verdict(loop, case, spec)
        if verdict:
            pytest.fail(verdict, pytrace=False)

    return keeps_the_contract


def unavailable(spec: Spec) -> str:
    """Say why a backend cannot run on this machine; nothing if it can.

    :raises UsageError: there is no such backend, or it does not take these options
    """
    try:
        opened = open_driver(spec.backend, spec.options)
    except BackendUnavailableError as error:
        return str(error)
    opened.driver.close()
    return ""


# ------------------------------------------------------------------------------------------------------- the seed


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a failed run be repeated."""
    parser.addoption("--conformance-seed", type=int, default=None, help="seed of all randomness in the checks")


def pytest_configure(config: pytest.Config) -> None:
    """Settle the seed before anything is reported."""
    seed_of(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let the processes of pytest-xdist draw from the same seed as the one that reports it."""
    node.workerinput[_TO_WORKER] = seed_of(node.config)


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed."""
    return f"conformance seed: {seed_of(config)}"


def seed_of(config: pytest.Config) -> int:
    """Return the run's one seed: from ``--conformance-seed``, else from ``AIO_TRANSFER_SEED``, else picked now."""
    if SEED not in config.stash:
        told: dict[str, int] = getattr(config, "workerinput", {})
        given = config.getoption("--conformance-seed", default=None)
        if given is None:
            given = told.get(_TO_WORKER, os.environ.get("AIO_TRANSFER_SEED", secrets.randbits(32)))
        config.stash[SEED] = int(given)
    return config.stash[SEED]


# ------------------------------------------------------------------------------------------------------- the cases


class _Case(NamedTuple):
    """What one test runs.

    :ivar missing: says what the backend does not offer for it, if anything
    """

    name: str
    missing: Callable[[Spec], str]
    run: Callable[[Spec], Awaitable[None]]

    def __str__(self) -> str:
        """Return its part of the test's id."""
        return self.name


def _verdict(loop: str, case: _Case, spec: Spec) -> str:
    """Run a case, and say what it found, if anything."""
    _warm(loop)
    try:
        _run(loop, case.run, spec)
    except ConformanceError as error:
        traceback.print_exception(error)  # pytest shows it below the verdict, as what the test has written
        return f"{error}\nto repeat it: AIO_TRANSFER_SEED={spec.seed}"
    return ""


def _of_check(check: Check) -> _Case:
    def missing(spec: Spec) -> str:
        lacks = check.missing(spec)
        return f"{spec} has no {lacks}" if lacks else ""

    return _Case(f"{check.topic}-{check.name}", missing, functools.partial(run_check, check))


def _of_schedules(count: int) -> Iterator[_Case]:
    for first in range(0, count, _PER_CASE):

        async def run(spec: Spec, first: int = first) -> None:
            await run_schedules(spec.seeded(spec.seed + first), min(_PER_CASE, count - first))

        yield _Case(f"schedules-{first}", lambda _: "", run)


def _of_seed(seed: int) -> _Case:
    return _Case(f"schedule-of-seed-{seed}", lambda _: "", functools.partial(run_schedule, seed=seed))


# ------------------------------------------------------------------------------------------------------- the loops


def _installed(loop: str) -> tuple[pytest.MarkDecorator, ...]:
    if loop not in LOOPS:
        raise KeyError(f"no event loop {loop!r}: there are {', '.join(LOOPS)}")
    package = _NEEDS.get(loop, "asyncio")
    missing = importlib.util.find_spec(package) is None
    return (pytest.mark.skip(reason=f"{package} is not installed"),) if missing else ()


def _run(loop: str, call: Callable[..., Awaitable[object]], *arguments: object) -> None:
    backend, options = LOOPS[loop]
    anyio.run(call, *arguments, backend=backend, backend_options=options)


@functools.cache
def _warm(loop: str) -> None:
    """Let a loop make what it keeps for the life of the process (libuv's signal pipe): it is no leak of a check's."""
    _run(loop, anyio.lowlevel.checkpoint)
