"""Every bar of the project and the figure beside it: ``python benchmarks/bars.py``, or ``nox -s bars``; 10 minutes.

Runs ``aio-transfer bench`` once per group of bars and prints a table in Markdown; with ``--json``, one object per bar.
Given words (``bars.py round scatter``) it runs only the groups in whose name one of them is. A machine that others use
is slow for minutes on end: ``--rounds 5`` goes through all of them five times, and prints the medians at the end. How
long Python took for the same sum before each run tells what kind of minutes they were. Comparisons with other libraries
are in ``benchmarks/peers``.
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
    """What one key of a line must be.

    :param least: or else at most
    :param nbytes: of which line, where a run has several
    """

    what: str
    key: str
    bound: float
    least: bool
    nbytes: int | None = None

    def judge(self, line: Line) -> bool:
        """Say whether it is met."""
        met: Callable[[float, float], bool] = operator.ge if self.least else operator.le
        return met(line[self.key], self.bound)


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that one run answers.

    :param instead: other settings; then a bar is about the default's figure for 1 of the best of all
    """

    work: str
    command: str
    bars: tuple[Bar, ...]
    instead: tuple[str, ...] = ()


def least(what: str, key: str, bound: float, nbytes: int | None = None) -> Bar:
    """Demand so much."""
    return Bar(what, key, bound, least=True, nbytes=nbytes)


def most(what: str, key: str, bound: float) -> Bar:
    """Allow so much."""
    return Bar(what, key, bound, least=False)


def ratios(bound: float, **sizes: int) -> tuple[Bar, ...]:
    """Demand a share of the floor's speed, for each size."""
    return tuple(least(f"{name.replace('_', ' ')}, of the floor", "ratio", bound, n) for name, n in sizes.items())


LARGE: Final = {"write_1_MiB": MIB, "write_16_MiB": 16 * MIB, "write_256_MiB": 256 * MIB}
LARGE_SIZES: Final = "--size 1MiB --size 16MiB --size 256MiB"


def over_tcp(backend: str, name: str) -> tuple[Group, ...]:
    """Demand the same of every way over TCP."""
    return (
        Group(
            f"pages, {name}",
            f"pages --backend {backend} --page 64KiB --count 1024",
            ratios(0.95, pages_of_64_KiB=64 << 10),
        ),
        Group(
            f"pages, {name}",
            f"pages --backend {backend} --page 4KiB",
            (least("pages of 4 KiB per second", "chunks_per_s", 4e5),),
        ),
        Group(f"writes, {name}", f"write --backend {backend} {LARGE_SIZES}", ratios(0.95, **LARGE)),
        Group(f"round trip, {name}", f"latency --backend {backend}", (most("asyncio, µs", "p50_us", 45),)),
    )


GROUPS: Final = (
    Group("pages, shm", "pages --page 4KiB", ratios(0.90, pages_of_4_KiB=4096)),
    Group("pages, shm", "pages --page 32KiB --count 1024", ratios(0.95, pages_of_32_KiB=32 << 10)),
    Group("pages, shm", "pages --page 64KiB --count 1024", ratios(0.95, pages_of_64_KiB=64 << 10)),
    Group("writes, shm", f"write {LARGE_SIZES}", ratios(0.95, **LARGE)),
    Group(
        "pages, shm, foreign memory",
        "pages --foreign --page 4KiB",
        (*ratios(0.95, pages_of_4_KiB=4096), least("pages per second", "chunks_per_s", 1.5e6)),
    ),
    Group("writes, shm, foreign memory", f"write --foreign {LARGE_SIZES}", ratios(0.95, **LARGE)),
    *over_tcp("libfabric", "libfabric's tcp"),
    *over_tcp("tcp", "tcp"),
    Group("round trip, shm", "latency", (most("asyncio, in pipe round trips", "times_floor", 1.4),)),
    Group("round trip, shm", "latency --loop uvloop", (most("uvloop, µs", "p50_us", 12),)),
    Group("round trip, shm", "latency --progress spin", (most("spinning, µs", "p50_us", 6),)),
    Group(
        "burst, shm",
        "write --size 8 --depth 1000",
        (least("asyncio, awaited writes per second", "chunks_per_s", 1.5e5),
         most("sleeps of the loop per write", "loop_sleeps_per_batch", 1 / 16)),
    ),
    Group(
        "burst, shm",
        "write --size 8 --depth 1000 --loop uvloop",
        (least("uvloop, awaited writes per second", "chunks_per_s", 2.5e5),),
    ),
    Group(
        "submit, shm",
        "plan",
        (most("4,096 pages, µs", "p50_us", 300), most("planning per page, µs", "plan_us_per_page", 0.05)),
    ),
    Group(
        "scatter, shm",
        "scatter --size 256 --peers 64",
        (most("64 prepared peers, submit to last post, µs", "submit_p50_us", 12),),
    ),
    Group("barrier, shm", "barrier", (most("8 engines, in one-way messages", "times_floor", 4),)),
    Group("busy loop, shm", "busy", (least("of the speed with one that waits", "ratio", 0.9),)),
    Group(
        "idle, shm",
        "idle --peers 64",
        (most("64 peers, % of a core", "cpu_percent", 1), most("wake-ups of the loop, 1/s", "loop_wakes_per_s", 0)),
    ),
    Group(
        "memory, shm",
        "growth --transfers 10000000",
        (most("per page under way, B", "bytes_per_page", 100), most("after 10 million writes, KiB", "grown_kib", 256)),
    ),
    Group("1,024 peers, shm", "scale --peers 1024", (most("a write, in those with 64 peers", "times_floor", 1.3),)),
    Group(
        "1,024 peers, libfabric's tcp",
        "scale --peers 1024 --backend libfabric",
        (most("a write, in those with 64 peers", "times_floor", 1.3),),
    ),
)  # fmt: skip


SETTINGS: Final = ("--progress spin", "--loop uvloop", "--loop trio")
TAKEN: Final = 1 / 1.3
"""What the default must reach of the best setting's speed."""


def defaults(what: str, command: str, key: str, *, least: bool) -> Group:
    """Demand of the default settings most of what the best ones reach."""
    bound = TAKEN if least else 1 / TAKEN
    return Group("default settings", command, (Bar(what, key, bound, least),), SETTINGS)


DEFAULTS: Final = (
    *(
        defaults(
            f"{name}, pages of 4 KiB, of the best setting's speed",
            f"pages --backend {name}",
            "chunks_per_s",
            least=True,
        )
        for name in ("shm", "tcp")
    ),
    *(
        defaults(f"{name}, 64 KiB writes, the same", f"write --backend {name} --size 64KiB", "gb_per_s", least=True)
        for name in ("shm", "tcp")
    ),
    *(
        defaults(f"{name}, round trip, in the best setting's", f"latency --backend {name}", "p50_us", least=False)
        for name in ("shm", "tcp")
    ),
)


def measure(command: str) -> list[Line]:
    """Run the benchmark in processes of its own, and return its lines."""
    words = [sys.executable, "-m", "aio_transfer", "bench", *command.split(), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return [json.loads(line) for line in done.stdout.splitlines()]


def beside(group: Group, bar: Bar, line: Line) -> Line:
    """Return the default's figure for 1 of the best setting's, and which one that is."""
    figures = {"default": line[bar.key]}
    for setting in group.instead:
        figures[setting] = measure(f"{group.command} {setting}")[0][bar.key]
    best = (max if bar.least else min)(figures, key=lambda name: figures[name])
    return {bar.key: line[bar.key] / figures[best], "best": best}


def answer(group: Group) -> list[Line]:
    """Measure what a group needs, and return a line for each of its bars."""
    lines = measure(group.command)
    found: list[Line] = []
    for bar in group.bars:
        line = next(one for one in lines if bar.nbytes in {None, one["nbytes"]})
        found.append(beside(group, bar, line) if group.instead else line)
    return found


def shown(group: Group, bar: Bar, lines: list[Line]) -> Line:
    """Return one bar beside the median of its figures, with the spread of the rounds, or of the one round's pairs."""
    figures = [line[bar.key] for line in lines]
    seen = statistics.median(figures)
    pairs = [lines[0].get(f"{bar.key}_{end}") for end in ("min", "max")]
    spread = pairs if len(lines) == 1 else [min(figures), max(figures)]
    best = f", {statistics.mode(line['best'] for line in lines).removeprefix('--')}" if group.instead else ""
    return {
        "work": group.work,
        "what": bar.what + best,
        "bar": f"{'≥' if bar.least else '≤'} {_short(bar.bound)}",
        "seen": _short(seen) + (f" ({_short(spread[0])} … {_short(spread[1])})" if None not in spread else ""),
        "met": bar.judge({bar.key: seen}),
        "rounds": len(lines),
        "command": group.command,
    }


def sum_ms() -> float:
    """Return how long Python takes for a sum: what the machine leaves us at the moment."""
    begin = time.perf_counter()
    sum(range(10**6))
    return 1e3 * (time.perf_counter() - begin)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"  # noqa: PLR2004 - three digits


def show(group: Group, found: list[list[Line]], *, as_json: bool) -> None:
    """Print a group's rows, of what each round has found; what failed each time has been said."""
    if not found:
        return
    for bar, lines in zip(group.bars, zip(*found, strict=True), strict=True):
        one = shown(group, bar, list(lines))
        cells = [one["work"], one["what"], one["bar"], one["seen"], "yes" if one["met"] else "**no**"]
        print(json.dumps(one) if as_json else f"| {' | '.join(cells)} |", flush=True)


def main(words: list[str]) -> int:
    """Measure and print what is asked for."""
    parser = argparse.ArgumentParser(description="Every bar and the figure beside it.")
    parser.add_argument("words", nargs="*", help="only the groups in whose name one of them is")
    parser.add_argument("--json", action="store_true", help="one object per bar")
    parser.add_argument("--rounds", type=int, default=1, help="how often to measure each; medians are shown")
    asked = parser.parse_args(words)
    groups = [one for one in (*GROUPS, *DEFAULTS) if not asked.words or any(word in one.work for word in asked.words)]
    found: dict[Group, list[list[Line]]] = {group: [] for group in groups}
    sums: list[float] = []
    if not asked.json:
        print("| work | | bar | seen | met |\n|---|---|---|---|---|", flush=True)
    for left in reversed(range(asked.rounds)):
        for group in groups:
            sums.append(sum_ms())
            try:
                found[group].append(answer(group))
            except subprocess.CalledProcessError as error:
                print(f"`bench {group.command}` failed: {error}", file=sys.stderr)
            if not left:
                show(group, found[group], as_json=asked.json)
    if sums:
        spread = f"{statistics.median(sums):.1f} ms ({min(sums):.1f} … {max(sums):.1f})"
        print(f"sum(range(10**6)) took {spread} before each", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
