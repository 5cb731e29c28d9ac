"""Performance bars beside the measured values: ``python benchmarks/bars.py`` or ``nox -s bars``; takes 10 minutes.

Runs ``aio-transfer bench`` once per group of bars and prints a Markdown table; with ``--json``, one object per bar.
Words as arguments (``bars.py round scatter``) select the groups with one of them in the name. A shared machine can be
slow for minutes: ``--rounds 5`` runs all groups five times and prints the medians at the end. Before each run the time
of a fixed sum in Python is taken, which shows how busy the machine was. Comparisons with other libraries are in
``benchmarks/peers``.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Line: TypeAlias = dict[str, Any]
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Bar:
    """Bound of one key of a JSON line.

    :param is_minimum: whether the bound is a minimum, else a maximum
    :param nbytes: size of the line, if a run prints several
    """

    what: str
    key: str
    bound: float
    is_minimum: bool
    nbytes: int | None = None

    def is_met(self, line: Line) -> bool:
        """Return whether a line meets the bar."""
        met: Callable[[float, float], bool] = operator.ge if self.is_minimum else operator.le
        return met(line[self.key], self.bound)


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that one run of the benchmark measures.

    :param alternatives: other settings; a bar then bounds the default's value divided by the best one of all
    """

    name: str
    command: str
    bars: tuple[Bar, ...]
    alternatives: tuple[str, ...] = ()


def minimum(what: str, key: str, bound: float, nbytes: int | None = None) -> Bar:
    """Return a bar with a minimum."""
    return Bar(what, key, bound, is_minimum=True, nbytes=nbytes)


def maximum(what: str, key: str, bound: float) -> Bar:
    """Return a bar with a maximum."""
    return Bar(what, key, bound, is_minimum=False)


def ratios(bound: float, **sizes: int) -> tuple[Bar, ...]:
    """Return bars with a minimum of the baseline's speed, one per size."""
    return tuple(minimum(f"{name.replace('_', ' ')}, of the baseline", "ratio", bound, n) for name, n in sizes.items())


LARGE: Final = {"write_1_MiB": MIB, "write_16_MiB": 16 * MIB, "write_256_MiB": 256 * MIB}
LARGE_SIZES: Final = "--size 1MiB --size 16MiB --size 256MiB"


def over_tcp(backend: str, name: str) -> tuple[Group, ...]:
    """Return the same bars for every backend over TCP."""
    return (
        Group(
            f"pages, {name}",
            f"pages --backend {backend} --page 64KiB --count 1024",
            ratios(0.95, pages_of_64_KiB=64 << 10),
        ),
        Group(
            f"pages, {name}",
            f"pages --backend {backend} --page 4KiB",
            (minimum("pages of 4 KiB per second", "chunks_per_s", 4e5),),
        ),
        Group(f"writes, {name}", f"write --backend {backend} {LARGE_SIZES}", ratios(0.95, **LARGE)),
        Group(f"round trip, {name}", f"latency --backend {backend}", (maximum("asyncio, µs", "p50_us", 45),)),
    )


GROUPS: Final = (
    Group("pages, shm", "pages --page 4KiB", ratios(0.90, pages_of_4_KiB=4096)),
    Group("pages, shm", "pages --page 32KiB --count 1024", ratios(0.95, pages_of_32_KiB=32 << 10)),
    Group("pages, shm", "pages --page 64KiB --count 1024", ratios(0.95, pages_of_64_KiB=64 << 10)),
    Group("writes, shm", f"write {LARGE_SIZES}", ratios(0.95, **LARGE)),
    Group(
        "pages, shm, foreign memory",
        "pages --foreign --page 4KiB",
        (*ratios(0.95, pages_of_4_KiB=4096), minimum("pages per second", "chunks_per_s", 1.5e6)),
    ),
    Group("writes, shm, foreign memory", f"write --foreign {LARGE_SIZES}", ratios(0.95, **LARGE)),
    *over_tcp("libfabric", "libfabric's tcp"),
    *over_tcp("tcp", "tcp"),
    Group("round trip, shm", "latency", (maximum("asyncio, relative to a pipe", "times_baseline", 1.4),)),
    Group("round trip, shm", "latency --loop uvloop", (maximum("uvloop, µs", "p50_us", 12),)),
    Group("round trip, shm", "latency --progress spin", (maximum("spinning, µs", "p50_us", 6),)),
    Group(
        "burst, shm",
        "write --size 8 --depth 1000",
        (minimum("asyncio, awaited writes per second", "chunks_per_s", 1.5e5),
         maximum("sleeps of the loop per write", "loop_sleeps_per_batch", 1 / 16)),
    ),
    Group(
        "burst, shm",
        "write --size 8 --depth 1000 --loop uvloop",
        (minimum("uvloop, awaited writes per second", "chunks_per_s", 2.5e5),),
    ),
    Group(
        "submit, shm",
        "submit-cost",
        (maximum("4,096 pages, µs", "p50_us", 300), maximum("planning per page, µs", "plan_us_per_page", 0.05)),
    ),
    Group(
        "scatter, shm",
        "scatter --size 256 --peers 64",
        (maximum("64 prepared peers, submit to last post, µs", "submit_p50_us", 12),),
    ),
    Group("barrier, shm", "barrier", (maximum("8 engines, relative to a one-way message", "times_baseline", 4),)),
    Group("busy loop, shm", "busy-loop", (minimum("of the speed with one that waits", "ratio", 0.9),)),
    Group(
        "idle, shm",
        "idle --peers 64",
        (maximum("64 peers, % of a core", "cpu_percent", 1), maximum("loop wake-ups, 1/s", "loop_wakes_per_s", 0)),
    ),
    Group(
        "memory, shm",
        "memory --transfers 10000000",
        (maximum("per page in flight, B", "bytes_per_page", 100), maximum("after 1e7 writes, KiB", "grown_kib", 256)),
    ),
    Group("1,024 peers, shm", "scale --peers 1024", (maximum("a write, relative to 64 peers", "times_baseline", 1.3),)),
    Group(
        "1,024 peers, libfabric's tcp",
        "scale --peers 1024 --backend libfabric",
        (maximum("a write, relative to 64 peers", "times_baseline", 1.3),),
    ),
)  # fmt: skip


SETTINGS: Final = ("--progress spin", "--loop uvloop", "--loop trio")
DEFAULT_SPEED: Final = 1 / 1.3
"""Minimum speed of the default settings, as a fraction of the best settings' speed."""


def defaults(what: str, command: str, key: str, *, is_minimum: bool) -> Group:
    """Return a group that compares the default settings with others."""
    bound = DEFAULT_SPEED if is_minimum else 1 / DEFAULT_SPEED
    return Group("default settings", command, (Bar(what, key, bound, is_minimum),), SETTINGS)


DEFAULTS: Final = (
    *(
        defaults(
            f"{name}, pages of 4 KiB, of the best setting's speed",
            f"pages --backend {name}",
            "chunks_per_s",
            is_minimum=True,
        )
        for name in ("shm", "tcp")
    ),
    *(
        defaults(
            f"{name}, 64 KiB writes, the same", f"write --backend {name} --size 64KiB", "gb_per_s", is_minimum=True
        )
        for name in ("shm", "tcp")
    ),
    *(
        defaults(
            f"{name}, round trip, relative to the best setting", f"latency --backend {name}", "p50_us", is_minimum=False
        )
        for name in ("shm", "tcp")
    ),
)


def measure(command: str) -> list[Line]:
    """Run the benchmark and return its JSON lines."""
    words = [sys.executable, "-m", "aio_transfer", "bench", *command.split(), "--json"]
    completed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return [json.loads(line) for line in completed.stdout.splitlines()]


def compare_settings(group: Group, bar: Bar, line: Line) -> Line:
    """Return the default's value divided by the best setting's, and that setting."""
    values = {"default": line[bar.key]}
    for setting in group.alternatives:
        values[setting] = measure(f"{group.command} {setting}")[0][bar.key]
    best = (max if bar.is_minimum else min)(values, key=lambda name: values[name])
    return {bar.key: line[bar.key] / values[best], "best": best}


def measure_group(group: Group) -> list[Line]:
    """Run a group, and return a line for each of its bars."""
    lines = measure(group.command)
    found: list[Line] = []
    for bar in group.bars:
        line = next(one for one in lines if bar.nbytes in {None, one["nbytes"]})
        found.append(compare_settings(group, bar, line) if group.alternatives else line)
    return found


def summarize(group: Group, bar: Bar, lines: list[Line]) -> Line:
    """Return a bar with its median value, and the range over the rounds, or over the pairs of a single round."""
    values = [line[bar.key] for line in lines]
    measured = statistics.median(values)
    pairs = [lines[0].get(f"{bar.key}_{end}") for end in ("min", "max")]
    spread = pairs if len(lines) == 1 else [min(values), max(values)]
    best = f", {statistics.mode(line['best'] for line in lines).removeprefix('--')}" if group.alternatives else ""
    return {
        "group": group.name,
        "what": bar.what + best,
        "bar": f"{'≥' if bar.is_minimum else '≤'} {_short(bar.bound)}",
        "measured": _short(measured) + (f" ({_short(spread[0])} … {_short(spread[1])})" if None not in spread else ""),
        "met": bar.is_met({bar.key: measured}),
        "rounds": len(lines),
        "command": group.command,
    }


def sum_ms() -> float:
    """Return the time of a fixed sum in Python, which shows how busy the machine is."""
    begin = time.perf_counter()
    sum(range(10**6))
    return 1e3 * (time.perf_counter() - begin)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"  # noqa: PLR2004 - three digits


def show(group: Group, found: list[list[Line]], *, as_json: bool) -> None:
    """Print a group's rows, from the lines of each round; errors were printed when they occurred."""
    if not found:
        return
    for bar, lines in zip(group.bars, zip(*found, strict=True), strict=True):
        row = summarize(group, bar, list(lines))
        cells = [row["group"], row["what"], row["bar"], row["measured"], "yes" if row["met"] else "**no**"]
        print(json.dumps(row) if as_json else f"| {' | '.join(cells)} |", flush=True)


def main(words: list[str]) -> int:
    """Measure and print the selected groups."""
    parser = argparse.ArgumentParser(description="Performance bars beside the measured values.")
    parser.add_argument("words", nargs="*", help="only the groups with one of these in the name")
    parser.add_argument("--json", action="store_true", help="one object per bar")
    parser.add_argument("--rounds", type=int, default=1, help="measure each group so often, and print medians")
    arguments = parser.parse_args(words)
    groups = [
        one for one in (*GROUPS, *DEFAULTS) if not arguments.words or any(word in one.name for word in arguments.words)
    ]
    found: dict[Group, list[list[Line]]] = {group: [] for group in groups}
    sums: list[float] = []
    if not arguments.json:
        print("| group | | bar | measured | met |\n|---|---|---|---|---|", flush=True)
    for remaining in reversed(range(arguments.rounds)):
        for group in groups:
            sums.append(sum_ms())
            try:
                found[group].append(measure_group(group))
            except subprocess.CalledProcessError as error:
                print(f"`bench {group.command}` failed: {error}", file=sys.stderr)
            if not remaining:
                show(group, found[group], as_json=arguments.json)
    if sums:
        spread = f"{statistics.median(sums):.1f} ms ({min(sums):.1f} … {max(sums):.1f})"
        print(f"sum(range(10**6)) took {spread} before each", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
