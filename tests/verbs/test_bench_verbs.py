"""Benchmarks on verbs: their results stand beside those of perftest on the same port."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("cables")]


def bench(*arguments: str) -> dict[str, Any]:
    """Run one test of the benchmark once, shortly, and return its line."""
    command = [sys.executable, "-m", "aio_transfer", "bench", *arguments, "--backend", "verbs", "--json"]
    command += ["--repeat", "1", "--sample", "0.05"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=280).stdout
    line: dict[str, Any] = json.loads(output)
    return line


def test_bandwidth_is_close_to_ib_write_bw() -> None:
    line = bench("write", "--size", "64KiB")
    assert line["baseline"] == "ib_write_bw"
    assert line["ratio"] == pytest.approx(line["gb_per_s"] / line["baseline_gb_per_s"], rel=0.01)


def test_paged_writes_are_close_to_the_raw_verbs_loop() -> None:
    line = bench("pages", "--page", "4KiB", "--count", "64")
    assert line["baseline"] == "raw loop"
    assert line["baseline_gb_per_s"] > 0


def test_latency_is_close_to_ib_write_lat() -> None:
    line = bench("latency")
    ratio = line["native_one_way_us"] / line["perftest_one_way_us"]
    assert line["native_times_perftest"] == pytest.approx(ratio, rel=0.01)
    assert line["native_one_way_us"] < line["one_way_us"]
