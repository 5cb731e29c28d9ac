"""Pictures of a run: bandwidth over size, and the distribution of times. Needs matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from aio_transfer.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aio_transfer.bench.report.result import Result

__all__ = ("plot", "require_plotting")

KINDS: Final = (".png", ".svg")


def require_plotting(path: Path) -> None:
    """See before a long run whether its picture can be made.

    :raises UsageError: neither ``.png`` nor ``.svg``, or no folder to put it in
    :raises UnsupportedError: matplotlib is missing
    """
    if path.suffix not in KINDS:
        raise UsageError(f"--plot makes {' and '.join(KINDS)} files, not {path.name!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise UnsupportedError("--plot", needs="matplotlib: pip install 'aio-transfer[plot]'", has="no matplotlib")


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw all results into one file, by its suffix."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    moved = [result for result in results if result.gb_per_s is not None]
    timed = [result for result in results if result.rounds_us]
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bandwidths(left, moved)
    _distributions(right, timed)
    figure.savefig(path)


def _bandwidths(axes: Any, results: Sequence[Result]) -> None:
    for test, group in groupby(results, lambda result: result.test):
        of_test = list(group)
        sizes = [result.nbytes for result in of_test]
        line = axes.plot(sizes, [result.gb_per_s for result in of_test], marker="o", label=test)[0]
        floors = [(result.nbytes, result.floor_gb_per_s) for result in of_test if result.floor_gb_per_s is not None]
        if floors:
            axes.plot(*zip(*floors, strict=True), linestyle="--", color=line.get_color(), label=f"{test}: floor")
    axes.set(xscale="log", xlabel="bytes per chunk", ylabel="GB/s", title="Bandwidth", ylim=(0, None))
    if results:
        axes.legend()


def _distributions(axes: Any, results: Sequence[Result]) -> None:
    for result in results:
        times = result.rounds_us
        shares = [(index + 1) / len(times) for index in range(len(times))]
        axes.plot(times, shares, label=f"{result.test} {result.count} x {result.nbytes} B")
    axes.set(xscale="log", xlabel="µs per batch", ylabel="share that took no longer", title="Times")
    if results:
        axes.legend(fontsize="small")
