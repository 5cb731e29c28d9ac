"""The table of bars shows the measured values."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from aio_transfer.bench.options import Options
from aio_transfer.cli.main import app

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bars.py"


@pytest.fixture(scope="module")
def bars() -> ModuleType:
    found = importlib.util.spec_from_file_location("bars", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["bars"] = module
    found.loader.exec_module(module)
    return module


def test_both_directions_and_their_edges(bars: Any) -> None:
    assert [bars.minimum("", "ratio", 0.9).is_met({"ratio": value}) for value in (0.89, 0.9, 1)] == [False, True, True]
    assert [bars.maximum("", "p50_us", 12).is_met({"p50_us": value}) for value in (13, 12, 1)] == [False, True, True]


def test_a_row(bars: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"nbytes": 4 << 20, "ratio": 9.0},
        *({"nbytes": size << 20, "ratio": 0.5, "ratio_min": 0.25, "ratio_max": 2.0} for size in (1, 16, 256)),
    ]
    monkeypatch.setattr(bars, "measure", lambda _: lines)
    assert bars.main(["writes, tcp"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5
    assert table[2] == "| writes, tcp | write 1 MiB, of the baseline | ≥ 0.95 | 0.5 (0.25 … 2) | **no** |"


def test_every_command_is_one(bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Options]] = []

    async def run(family: str, options: Options) -> Any:
        asked.append((family, options))
        for _ in ():
            yield

    monkeypatch.setattr("aio_transfer.bench.run", run)
    groups = (*bars.GROUPS, *bars.DEFAULTS)
    commands = [f"{group.command} {setting}" for group in groups for setting in ("", *group.alternatives)]
    for command in commands:
        result = CliRunner().invoke(app, ["bench", *command.split(), "--json"])
        assert result.exit_code == 0, (command, result.output)
    assert [family for family, _ in asked] == [command.split()[0] for command in commands]


def test_the_default_beside_the_best_setting(bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"": 10.0, "--progress spin": 5.0, "--loop uvloop": 8.0, "--loop trio": 12.0}
    monkeypatch.setattr(bars, "measure", lambda command: [{"p50_us": figures[command.removeprefix("latency").strip()]}])
    faster = bars.defaults("round trip", "latency", "p50_us", is_minimum=False)
    found = bars.summarize(faster, faster.bars[0], [bars.compare_settings(faster, faster.bars[0], {"p50_us": 10.0})])
    assert found["measured"] == "2"
    assert found["what"] == "round trip, progress spin"
    assert found["met"] is False
    more = bars.defaults("speed", "latency", "p50_us", is_minimum=True)
    assert bars.compare_settings(more, more.bars[0], {"p50_us": 10.0}) == {
        "p50_us": pytest.approx(10 / 12),
        "best": "--loop trio",
    }
    assert (
        bars.summarize(more, more.bars[0], [bars.compare_settings(more, more.bars[0], {"p50_us": 10.0})])["met"] is True
    )


def test_rounds(bars: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = iter((0.5, 1.0, 0.96))
    pairs = {"nbytes": 0, "ratio_min": 0.1, "ratio_max": 9.0}
    monkeypatch.setattr(bars, "measure", lambda _: [pairs | {"ratio": next(figures)}])
    assert bars.main(["--rounds", "3", "busy"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2:] == [
        "| busy loop, shm | of the speed with one that waits | ≥ 0.9 | 0.96 (0.5 … 1) | yes |"
    ]
    assert "before each" in captured.err


def test_a_round_that_fails(bars: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = iter((None, 1.0))

    def measure(command: str) -> list[Any]:
        figure = next(figures)
        if figure is None:
            raise subprocess.CalledProcessError(1, command)
        return [{"nbytes": 0, "ratio": figure}]

    monkeypatch.setattr(bars, "measure", measure)
    assert bars.main(["--json", "--rounds", "2", "busy"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rounds"] == 1
    assert "`bench busy-loop` failed" in captured.err
