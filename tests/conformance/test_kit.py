"""Tests of the kit: it catches wrong drivers, names the broken rule, and reports the seed that repeats a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aio_transfer.driver import backend_registry
from aio_transfer.testing import CHECKS, RULES, ConformanceError, ConformanceReport, Spec, check_backend, select

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

import wrong_drivers

if TYPE_CHECKING:
    from collections.abc import Iterator

MUTANTS = {
    "DropsTail": ("rule 3", ("write_counts_once", "write_sizes")),
    "WritesOneByteMore": ("rule 3", ("pages_permuted",)),
    "IgnoresOffset": ("rule 3", ("write_counts_once",)),
    "CountsTwice": ("rule 3", ("write_counts_once", "pages_permuted")),
    "CountsTooMuch": ("rule 3", ("write_counts_once",)),
    "SkipsEmptyPieces": ("rule 3", ("write_of_nothing_counts", "pages_of_nothing_count")),
    "CountsBeforePayload": ("rule 2", ("write_payload_before_count", "pages_never_ahead")),
    "SaysDoneTooEarly": ("rule 6", ("write_source_is_free_afterwards",)),
    "ForgetsEarlyCounts": ("rule 4", ("early_counts_well_known",)),
    "LosesEvents": ("rule 5", ("wait_is_fifo",)),
    "LeaksHandles": ("rule 3", ("write_counts_once",)),
    "LosesFailuresOfEach": ("rule 6", ("post_each_fails_one_alone",)),
    "SpinsPastTheTotal": ("rule 5", ("spin_wait_returns_the_total",)),
    "RevivesRegions": ("rule 9", ("region_closed_between_writes", "region_closed_before_first_write")),
}


@pytest.fixture
def wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spec]:
    monkeypatch.setitem(backend_registry.LOADED, "wrong", wrong_drivers.backend(request.param))
    yield Spec(backend="wrong", name=request.param, seed=1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("wrong", "rule", "checks"), [(name, *found) for name, found in MUTANTS.items()], ids=MUTANTS, indirect=["wrong"]
)
async def test_mutant_is_caught(wrong: Spec, rule: str, checks: tuple[str, ...]) -> None:
    for _ in range(10):  # some show only where a thread is slow enough
        report = await check_backend(wrong, only=checks)
        if report.failures:
            break
    assert report.failures, f"{wrong} passed {checks}"
    with pytest.raises(ConformanceError) as caught:
        report.raise_for_failures()
    text = str(caught.value)
    assert f"{rule} ({RULES[rule]}) is broken on {wrong}" in text, text
    assert "[seed 1]" in text


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_correct_backend_passes(anyio_backend: str) -> None:
    report = await check_backend(Spec(backend="shm", reads=False), only=["write_counts_once", "reads"])
    report.raise_for_failures()
    outcomes = {result.check.topic: result.outcome for result in report.results}
    assert outcomes == {"writes": "passed", "reads": "skipped"}
    assert str(report).startswith("shm: 1 passed, "), str(report)


def test_checks_are_registered_and_selected_by_name_or_topic() -> None:
    assert len(select()) == len(CHECKS) >= 150
    assert all(check.promise.endswith(".") and check.rule in RULES for check in CHECKS.values())
    assert {check.topic for check in select("barrier")} == {"barrier"}
    with pytest.raises(KeyError, match="nonsense"):
        select("nonsense")


def test_a_report_without_failures_raises_nothing() -> None:
    ConformanceReport(spec=Spec(backend="shm"), results=()).raise_for_failures()
