"""Plot of a run: bandwidth by size, and the distribution of times. Needs matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from aio_transfer.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aio_transfer.bench.report.result import Result

__all__ = ("plot_results", "require_plotting")

SUFFIXES: Final = (".png", ".svg")


def require_plotting(path: Path) -> None:
    """Check before a long run that its plot can be written.

    :raises UsageError: neither ``.png`` nor ``.svg``, or the folder does not exist
    :raises UnsupportedError: matplotlib is missing
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot makes {' and '.join(SUFFIXES)} files, not {path.name!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise UnsupportedError("--plot", needs="matplotlib: pip install 'aio-transfer[plot]'", has="no matplotlib")


def plot_results(results: Sequence[Result], path: Path) -> None:
    """Draw all results into one file; its suffix is the format."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    with_bandwidth = [result for result in results if result.gb_per_s is not None]
    with_times = [result for result in results if result.iterations_us]
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bandwidths(left, with_bandwidth)
    _distributions(right, with_times)
    figure.savefig(path)


def _bandwidths(axes: Any, results: Sequence[Result]) -> None:
    for test, group in groupby(results, lambda result: result.test):
        of_test = list(group)
        sizes = [result.nbytes for result in of_test]
        line = axes.plot(sizes, [result.gb_per_s for result in of_test], marker="o", label=test)[0]
        baselines = [
            (result.nbytes, result.baseline_gb_per_s) for result in of_test if result.baseline_gb_per_s is not None
        ]
        if baselines:
            axes.plot(*zip(*baselines, strict=True), linestyle="--", color=line.get_color(), label=f"{test}: baseline")
    axes.set(xscale="log", xlabel="bytes per chunk", ylabel="GB/s", title="Bandwidth", ylim=(0, None))
    if results:
        axes.legend()


def _distributions(axes: Any, results: Sequence[Result]) -> None:
    for result in results:
        times = result.iterations_us
        shares = [(index + 1) / len(times) for index in range(len(times))]
        axes.plot(times, shares, label=f"{result.test} {result.count} x {result.nbytes} B")
    axes.set(xscale="log", xlabel="µs per batch", ylabel="fraction that took no longer", title="Times")
    if results:
        axes.legend(fontsize="small")
