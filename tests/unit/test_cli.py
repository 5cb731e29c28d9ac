"""The command line: its output, in each form, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

import aio_transfer
from aio_transfer import formatting
from aio_transfer.cli import app, output
from aio_transfer.demo import disaggregated as demo_module
from aio_transfer.demo.disaggregated import DemoOptions, DemoReport
from aio_transfer.doctor.host_check import HostCheck
from aio_transfer.driver import backend_registry
from aio_transfer.errors import BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUNNER = CliRunner()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report of a made-up backend, with the fields of :class:`aio_transfer.driver.backend_registry.BackendReport`."""

    backend: str
    provider: str = ""
    usable: bool = True
    rails: tuple[str, ...] = ()
    detail: str = ""
    reason: str = ""
    hint: str = ""


SHM = Report(backend="shm", provider="memfd", rails=("memory",), detail="memcpy [fast]")
FABRIC = Report(backend="libfabric", usable=False, reason="not found", hint="pip install 'aio-transfer[libfabric]'")


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    found: list[Report] = [SHM, FABRIC]
    monkeypatch.setattr(backend_registry, "available", lambda: found)
    return found


def test_version() -> None:
    result = RUNNER.invoke(app, ["--version"])
    assert result.output == f"aio-transfer {aio_transfer.__version__}\n"
    assert result.exit_code == 0


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    text = RUNNER.invoke(app, arguments).output
    for line in ("aio-transfer demo", "aio-transfer devices", "aio-transfer doctor", "--json"):
        assert line in text


@pytest.mark.parametrize("command", ["demo", "devices", "doctor"])
def test_each_command_has_help(command: str) -> None:
    result = RUNNER.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


@pytest.mark.parametrize(
    "arguments",
    [["dance"], ["demo", "--layers", "0"], ["demo", "--tokens", "x"], ["demo", "--input", "/no/such"], ["--nope"]],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert RUNNER.invoke(app, arguments).exit_code == 2


def test_command_line_imports_no_heavy_module_of_its_own() -> None:
    """Beside what ``import aio_transfer`` imports, the commands add only typer."""
    code = (
        "import sys, aio_transfer\nbefore = set(sys.modules)\nimport aio_transfer.cli\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    new = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert not {"torch", "cupy", "rich", "trio", "uvloop"} & set(new)


def test_devices_in_plain_lines(backends: list[Report]) -> None:
    result = RUNNER.invoke(app, ["devices"])
    shm, fabric = result.output.splitlines()
    assert shm.split() == ["shm", "memfd", "yes", "memory", "memcpy", "[fast]"]
    assert fabric.split()[:4] == ["libfabric", "-", "no", "-"]
    assert "not found (try: pip install 'aio-transfer[libfabric]')" in fabric
    assert result.exit_code == 0


def test_devices_as_a_table_on_a_terminal(backends: list[Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    text = RUNNER.invoke(app, ["devices"]).output
    assert text.split()[:5] == ["backend", "provider", "usable", "NICs", "detail"]
    assert "[fast]" in text


def test_devices_as_json(backends: list[Report]) -> None:
    result = RUNNER.invoke(app, ["devices", "--json"])
    shm, fabric = json.loads(result.output)["backends"]
    assert shm == {**shm, "backend": "shm", "usable": True, "rails": ["memory"]}
    assert fabric["hint"] == FABRIC.hint


def test_devices_without_any_is_1(backends: list[Report]) -> None:
    backends[:] = [FABRIC]
    result = RUNNER.invoke(app, ["devices"])
    assert result.exit_code == 1
    assert "aio-transfer doctor" in result.stderr


def test_devices_without_backends_at_all_is_1(backends: list[Report]) -> None:
    backends.clear()
    assert RUNNER.invoke(app, ["devices"]).exit_code == 1


@pytest.fixture
def examination(backends: list[Report], monkeypatch: pytest.MonkeyPatch) -> list[HostCheck]:
    checks = [
        HostCheck(name="good", status="ok", detail="fine"),
        HostCheck(name="slow", status="warn", detail="meh", fix="sudo faster"),
    ]
    monkeypatch.setattr("aio_transfer.doctor.examine", lambda _host, _reports: checks)
    return checks


def test_doctor_shows_the_fixing_command(examination: list[HostCheck]) -> None:
    result = RUNNER.invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert result.output.splitlines()[:2] == ["good  ok    fine", "slow  warn  meh"]
    assert "to fix slow:\n  sudo faster" in result.output


def test_doctor_is_1_when_something_fails(examination: list[HostCheck]) -> None:
    examination.append(HostCheck(name="memfd", status="fail", detail="no", fix="docker run …"))
    result = RUNNER.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    printed = json.loads(result.output)
    assert printed["ok"] is False
    assert printed["checks"][-1] == {"name": "memfd", "status": "fail", "detail": "no", "fix": "docker run …"}


def test_doctor_finds_that_the_backends_are_broken(
    examination: list[HostCheck], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Report]:
        raise ImportError("no native core")

    monkeypatch.setattr(backend_registry, "available", broken)
    result = RUNNER.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "ImportError: no native core" in result.output


REPORT = DemoReport(
    match=True,
    tokens_match=True,
    pages_match=True,
    backend="shm",
    provider="memfd",
    path="shm/memfd over memory",
    input="the included text",
    input_nbytes=10_000,
    prompt_nbytes=8192,
    layers=2,
    prefills=2,
    seed=0,
    pages=1024,
    page_nbytes=16384,
    counts=2049,
    nbytes=1 << 24,
    gb_per_s=5.0,
    ttft_s=0.5,
    ttft_alone_s=0.4,
    tokens=[72, 105],
    text="Hi",
)


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> list[DemoReport | Exception]:
    """Replace the run itself; the last item is its result or its error."""
    outcomes: list[DemoReport | Exception] = [REPORT]

    async def run(options: DemoOptions, on_arrival: Callable[[int, int], None]) -> DemoReport:
        assert options == DemoOptions(layers=2, prefills=2, tokens=2)
        on_arrival(7, 2049)
        if isinstance(outcomes[-1], Exception):
            raise outcomes[-1]
        return outcomes[-1]

    monkeypatch.setattr(demo_module, "run_demo", run)
    return outcomes


DEMO = ["demo", "--layers", "2", "--prefills", "2", "--tokens", "2"]


def test_demo_in_plain_lines(outcome: list[DemoReport | Exception]) -> None:
    result = RUNNER.invoke(app, DEMO)
    assert result.exit_code == 0
    text = result.output
    for part in (
        "arrived: 7 of 2049",
        "the first of 10,000",
        "16 MiB by 2 prefill processes",
        "72 105",
        "yes: 2 tokens",
    ):
        assert part in text


def test_demo_as_json(outcome: list[DemoReport | Exception]) -> None:
    result = RUNNER.invoke(app, [*DEMO, "--json"])
    printed = json.loads(result.output)
    assert printed["match"] is True
    assert printed["tokens"] == [72, 105]
    assert printed["text"] == "Hi"


def test_demo_with_a_bar_on_a_terminal(outcome: list[DemoReport | Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aio_transfer.cli.demo.stdout_is_terminal", lambda: True)
    result = RUNNER.invoke(app, DEMO)
    assert result.exit_code == 0
    assert "KV pages" in result.output
    assert "arrived" not in result.output


@pytest.mark.parametrize("as_json", [False, True])
def test_demo_mismatch_is_1(outcome: list[DemoReport | Exception], *, as_json: bool) -> None:
    outcome.append(replace(REPORT, match=False, pages_match=False))
    result = RUNNER.invoke(app, DEMO + ["--json"] * as_json)
    assert result.exit_code == 1
    if as_json:
        assert json.loads(result.output)["match"] is False
    else:
        assert "NO: the pages differ" in result.output


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BackendUnavailableError("efa", "no device", "sudo x"), 1),
        (UsageError("it is empty"), 2),
        (OSError(5, "bad"), 1),
    ],
)
def test_demo_failure_is_reported(outcome: list[DemoReport | Exception], error: Exception, status: int) -> None:
    outcome.append(error)
    result = RUNNER.invoke(app, [*DEMO, "--json"])
    assert result.exit_code == status
    assert json.loads(result.stdout)["match"] is False
    assert str(error) in result.stderr


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (16384, "16 KiB"),
        (3 << 30, "3 GiB"),
    ],
)
def test_sizes(nbytes: float, text: str) -> None:
    assert formatting.format_size(nbytes) == text


def test_run_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aio_transfer", "--version"], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.startswith("aio-transfer ")
