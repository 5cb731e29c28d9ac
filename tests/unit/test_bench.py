"""The benchmark without its processes: sizes, statistics, JSON lines, tables and plots."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from aio_transfer.bench.baselines import perftest
from aio_transfer.bench.baselines.perftest import is_possible, parse_row
from aio_transfer.bench.options import Options
from aio_transfer.bench.report.display import BAR_CELLS, bar, open_display, table_cells
from aio_transfer.bench.report.plotting import plot_results, require_plotting
from aio_transfer.bench.report.result import Result, Workload, bandwidth_result, latency_result
from aio_transfer.bench.report.statistics import (
    MAX_ITERATIONS,
    Pair,
    Sample,
    iterations_for,
    microseconds,
    percentile,
    speed_ratios,
    spread,
)
from aio_transfer.bench.run import FAMILIES
from aio_transfer.bench.run import run as run_module
from aio_transfer.bench.sizes import parse_size, sweep
from aio_transfer.bench.workers.bandwidth_steps import chunk_order
from aio_transfer.bench.workers.worker_state import cpu_ns, random_bytes
from aio_transfer.cli import app
from aio_transfer.errors import AioTransferError, UnsupportedError, UsageError
from aio_transfer.subprocesses.json_lines import MAX_LINE_NBYTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

RUNNER = CliRunner()
KEYS = ["test", "backend", "provider", "nbytes", "count"]
KEYS += ["gb_per_s", "baseline_gb_per_s", "ratio", "p50_us", "p99_us", "cpu_s_per_gib"]
SLOW = Sample(elapsed_ns=4000, iterations_ns=[1000, 3000], cpu_ns=8000)
FAST = Sample(elapsed_ns=2000, iterations_ns=[500, 1500])


def workload(test: str, *, nbytes: int, count: int, loop: str = "asyncio") -> Workload:
    return Workload(test=test, options=Options(loop=loop), provider="memfd", nbytes=nbytes, count=count)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("8B", 8), ("4KiB", 4096), ("4k", 4096), (" 16 MiB ", 16 << 20), ("2G", 2 << 30), ("3MIB", 3 << 20)],
)
def test_sizes_with_units(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "0KiB", "-1", "4.5KiB", "4KB", "KiB", "4 TiB", "4KiB4", "0x10", "1e3"])
def test_malformed_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_sweep_multiplies_up_to_the_last_size() -> None:
    assert sweep(4096, 4096) == (4096,)
    assert sweep(1, 64) == (1, 4, 16, 64)
    assert sweep(1, 65) == (1, 4, 16, 64)


def test_median_and_spread() -> None:
    assert spread([3, 1, 2]) == (2, 1, 3)
    assert spread([4, 1]) == (2.5, 1, 4)


@pytest.mark.parametrize(("percent", "value"), [(0, 10), (50, 30), (99, 40), (100, 40)])
def test_percentiles_are_values_that_occurred(percent: float, value: float) -> None:
    assert percentile([10, 20, 30, 40], percent) == value


def test_times_of_all_samples_together() -> None:
    assert microseconds([SLOW, FAST]) == [0.5, 1.0, 1.5, 3.0]


def test_ratio_is_taken_pair_by_pair() -> None:
    """A machine that slows down between pairs changes neither ratio."""
    slower = Pair(Sample(elapsed_ns=40, iterations_ns=[40]), Sample(elapsed_ns=20, iterations_ns=[20]))
    assert speed_ratios([Pair(SLOW, FAST), slower]) == (0.5, 0.5, 0.5)
    assert speed_ratios([Pair(SLOW, None)]) is None


def test_rounds_fill_a_sample_within_bounds() -> None:
    assert iterations_for(0.001, 1000) == 1000
    assert iterations_for(0.001, 1e9) == 1
    assert iterations_for(60, 0) == MAX_ITERATIONS


def test_times_of_a_sample_fit_into_one_message() -> None:
    """A step's response has at most two lists of times and is one JSON line."""
    digits = 15
    assert MAX_ITERATIONS * 3 * (digits + 1) < MAX_LINE_NBYTES


def test_bandwidth_line() -> None:
    result = bandwidth_result(workload("pages", nbytes=4096, count=10), [Pair(SLOW, FAST)] * 3, iterations=2)
    line = result.as_dict()
    assert list(line)[: len(KEYS)] == KEYS
    assert (line["gb_per_s"], line["baseline_gb_per_s"], line["ratio"]) == (20.48, 40.96, 0.5)
    assert (line["p50_us"], line["p99_us"]) == (3.0, 3.0)
    assert line["cpu_s_per_gib"] == pytest.approx(8000e-9 / (2 * 40960) * 2**30, rel=1e-3)
    assert (line["iterations"], line["samples"], line["loop"], line["foreign"]) == (2, 3, "asyncio", False)
    assert line["chunks_per_s"] == 5e6
    assert "baseline_reason" not in line
    assert "iterations_us" not in line
    json.dumps(line, allow_nan=False)


def test_no_baseline_is_null_with_a_reason_and_never_a_number() -> None:
    line = bandwidth_result(workload("write", nbytes=1, count=1), [Pair(SLOW, None)]).as_dict()
    assert line["baseline_gb_per_s"] is None
    assert line["ratio"] is None
    assert line["baseline_reason"]


def test_times_line() -> None:
    line = latency_result(workload("latency", loop="trio", nbytes=8, count=1), [Pair(SLOW, FAST)], half=1).as_dict()
    assert list(line)[: len(KEYS)] == KEYS
    assert (line["gb_per_s"], line["baseline_gb_per_s"], line["cpu_s_per_gib"]) == (None, None, None)
    assert (line["ratio"], line["times_baseline"], line["baseline_p50_us"], line["p50_us"]) == (0.5, 2.0, 1.5, 3.0)
    assert (line["half"], line["loop"], line["cpu_us_per_iteration"]) == (1, "trio", 4.0)


@pytest.mark.parametrize("wrong", [{"loop": "curio"}, {"progress": "hope"}, {"backend": "auto"}])
def test_options_that_cannot_run(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Options(**wrong)  # type: ignore[arg-type]


def test_options_for_the_backend() -> None:
    assert Options().backend_options() == {"shm": {"progress": "adaptive"}}
    asked = Options(backend="libfabric", provider="tcp", progress="spin")
    assert asked.backend_options() == {"libfabric": {"progress": "spin", "provider": "tcp"}}


def test_both_processes_know_the_order_and_the_content() -> None:
    assert sorted(chunk_order(100, "source")) == list(range(100))
    assert list(chunk_order(100, "source")) == list(chunk_order(100, "source"))
    assert list(chunk_order(100, "source")) != list(chunk_order(100, "target"))
    assert random_bytes(13, 1).nbytes == 13
    assert (random_bytes(4096, 1) == random_bytes(4096, 1)).all()
    assert (random_bytes(4096, 1) != random_bytes(4096, 2)).any()


def test_cpu_clock_of_a_process_that_is_gone_is_an_error() -> None:
    assert cpu_ns([]) > 0
    with pytest.raises(OSError, match="Invalid argument"):
        cpu_ns([2**22 + 1])


def test_bars_are_scaled_to_the_highest() -> None:
    assert bar(1, 1) == "█" * BAR_CELLS
    assert bar(0, 1) == bar(0, 0) == ""
    assert bar(1 / 2, 1) == "█" * (BAR_CELLS // 2)
    assert len(bar(0.99, 1)) <= BAR_CELLS


@pytest.fixture
def results() -> list[Result]:
    moved = bandwidth_result(workload("write", nbytes=4096, count=1), [Pair(SLOW, FAST)])
    timed = latency_result(workload("latency", nbytes=8, count=1), [Pair(SLOW, FAST)])
    return [moved, timed, Result(test="idle", backend="shm", provider="memfd", nbytes=0, count=0, more={"peers": 3})]


def test_rows_have_the_same_table_cells(results: list[Result]) -> None:
    assert len({tuple(table_cells(result)) for result in results}) == 1
    assert table_cells(results[2])["also"] == "3 peers"
    assert not table_cells(results[2])["GB/s"]


@pytest.fixture
def measured(results: list[Result], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Options]]:
    """Replace the measurements by made-up results; returns the families and options that were requested."""
    asked: list[tuple[str, Options]] = []

    async def run(family: str, options: Options) -> AsyncGenerator[Result]:
        asked.append((family, options))
        for result in results:
            yield result

    monkeypatch.setattr("aio_transfer.bench.run", run)
    return asked


@pytest.mark.parametrize("family", [*FAMILIES, "all"])
def test_every_family_is_a_command(family: str, measured: list[tuple[str, Options]]) -> None:
    result = RUNNER.invoke(app, ["bench", family, "--json", "--loop", "trio"])
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["test"] for line in result.output.splitlines()] == ["write", "latency", "idle"]
    assert [(name, options.loop) for name, options in measured] == [(family, "trio")]


def test_options_arrive(measured: list[tuple[str, Options]]) -> None:
    command = "bench pages --page 4KiB --page 64KiB --count 7 --depth 3 --backend libfabric --provider tcp --foreign"
    assert RUNNER.invoke(app, [*command.split(), "--repeat=9", "--sample=2", "--progress=spin"]).exit_code == 0
    expected = Options(
        backend="libfabric", provider="tcp", sizes=(4096, 65536), count=7, depth=3, foreign=True, repeat=9,
        sample_s=2, progress="spin",
    )  # fmt: skip
    assert measured == [("pages", expected)]
    assert RUNNER.invoke(app, ["bench", "barrier", "--engines", "5"]).exit_code == 0
    assert measured[1][1].peers == 5


def test_plain_lines_without_a_terminal(measured: list[tuple[str, Options]]) -> None:
    first, second, third = RUNNER.invoke(app, ["bench", "all"]).output.splitlines()
    assert first.startswith("write shm/memfd  4 KiB  2.05 GB/s")
    assert "2.00 x baseline" in second
    assert third.split() == ["idle", "shm/memfd", "3", "peers"]


def test_table_on_a_terminal(results: list[Result], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
                             ) -> None:  # fmt: skip
    monkeypatch.setattr("aio_transfer.bench.report.display.stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with open_display(as_json=False) as display:
        for result in results:
            display.show(result)
    shown = capsys.readouterr().out
    assert "GB/s" in shown
    assert "█" in shown


@pytest.mark.parametrize(
    "arguments",
    [["latency", "--size", "8"], ["write", "--size", "big"], ["pages", "--count", "0"], ["pages", "--loop", "curio"],
     ["write", "--backend", "auto"], ["dance"], ["write", "--repeat", "0"], ["write", "--plot", "x.pdf"]],
)  # fmt: skip
def test_usage_errors_exit_with_2(arguments: list[str], measured: list[tuple[str, Options]]) -> None:
    assert RUNNER.invoke(app, ["bench", *arguments]).exit_code == 2
    assert not measured


def test_an_unknown_backend_is_one_line_and_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    result = RUNNER.invoke(app, ["bench", "latency", "--backend", "nope"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no backend 'nope'")
    assert "shm" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


@pytest.mark.anyio
async def test_no_such_family() -> None:
    with pytest.raises(UsageError, match="none of write, pages"):
        await anext(run_module("dance", Options()))


def test_plot_needs_matplotlib_before_anything_is_measured(
    measured: list[tuple[str, Options]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aio_transfer.bench.report.plotting.find_spec", lambda _: None)
    result = RUNNER.invoke(app, ["bench", "write", "--plot", str(tmp_path / "x.svg")])
    assert result.exit_code == 1
    assert "pip install 'aio-transfer[plot]'" in result.stderr
    assert not measured
    with pytest.raises(UnsupportedError):
        require_plotting(tmp_path / "x.png")
    with pytest.raises(UsageError, match="no folder"):
        require_plotting(tmp_path / "nowhere" / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_is_written(results: list[Result], tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"x{suffix}"
    require_plotting(path)
    plot_results(results, path)
    assert path.stat().st_size > 1000


PERFTEST = """\
---------------------------------------------------------------------------------------
                    RDMA_Write BW Test
 Dual-port       : OFF\t\tDevice         : rxe_left0
 Mtu             : 4096[B]
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      1000             47.10              46.44\t\t   0.000743
---------------------------------------------------------------------------------------
"""


def test_what_perftest_prints() -> None:
    assert parse_row(PERFTEST, 65536) == [65536, 1000, 47.10, 46.44, 0.000743]


@pytest.mark.anyio
async def test_perftest_is_asked_again_when_its_clock_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[65536, 100, 0.0, 0.0, 0.0], [65536, 100, 48.0, 32.0, 0.0005]]

    async def run(*_: object) -> list[float]:
        return rows.pop(0)

    monkeypatch.setattr(perftest, "_run", run)
    assert await perftest.seconds_per_write(perftest.RdmaPortName("rxe_lo:1"), 65536, 100) == pytest.approx(1 / 512)
    rows = [[65536, 100, 0.0, 0.0, 0.0]] * perftest.TRIES
    with pytest.raises(AioTransferError, match="measured nothing"):
        await perftest.seconds_per_write(perftest.RdmaPortName("rxe_lo:1"), 65536, 100)


@pytest.mark.parametrize("output", ["", "Couldn't connect to 127.0.0.1:19000", PERFTEST.replace("65536", "65537")])
def test_perftest_failure_shows_its_output(output: str) -> None:
    with pytest.raises(AioTransferError, match=r"perftest failed: (.|\n)*" + output[-20:].strip()):
        parse_row(output, 65536)


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        (Options(backend="verbs"), True),
        (Options(backend="libfabric"), False),
        (Options(backend="verbs", progress="spin"), False),
        (Options(backend="verbs", connect="there:7000"), False),
    ],
)
@pytest.mark.parametrize("is_installed", [True, False])
def test_perftest_runs_only_where_it_is_comparable(
    monkeypatch: pytest.MonkeyPatch, options: Options, possible: bool, is_installed: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name if is_installed else None)
    assert is_possible(options) == (possible and is_installed)


def test_words_go_there_and_back_without_an_engine() -> None:
    from aio_transfer.bench.baselines._baseline import Rail

    options = {"search": str(Path(sys.prefix, "lib/mpich/libfabric.so.1"))}
    memories = [np.full(4, number, np.uint64) for number in (1, 2)]
    one, other = (Rail("libfabric", options, True, memory.ctypes.data, memory.nbytes) for memory in memories)
    offered = [rail.offer() for rail in (one, other)]
    for rail, (end, key) in zip((one, other), offered[::-1], strict=True):
        rail.join(end, key, memories[0].nbytes)
    with ThreadPoolExecutor() as threads:
        answering = threads.submit(other.exchange, 20, begins=False)
        assert len(one.exchange(20, begins=True)) == len(answering.result()) == 20
    assert [memory.tolist() for memory in memories] == [[2, 1, 1, 1], [1, 2, 2, 2]]
