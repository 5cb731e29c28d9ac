"""Statistics of samples: pairs of engine and baseline, their medians, and their spread."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = (
    "GIB",
    "MAX_ITERATIONS",
    "Pair",
    "Sample",
    "Spread",
    "iterations_for",
    "microseconds",
    "percentile",
    "speed_ratios",
    "spread",
)

GIB: Final = 1 << 30
MAX_ITERATIONS: Final = 20_000
"""Per sample, so that the response of a step fits into one JSON line; a test computes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement: several iterations without a pause.

    :param iterations_ns: time of each iteration, for the distribution; iterations may overlap
    :param cpu_ns: user and system time of all processes that took part
    """

    elapsed_ns: int
    iterations_ns: Sequence[int]
    cpu_ns: int = 0

    @property
    def mean_ns(self) -> float:
        """Elapsed time per iteration."""
        return self.elapsed_ns / max(1, len(self.iterations_ns))


class Pair(NamedTuple):
    """Samples of the engine and of the baseline, taken right after one another; ``None`` without a baseline."""

    engine: Sample
    baseline: Sample | None


class Spread(NamedTuple):
    """Median, minimum and maximum of several samples."""

    median: float
    minimum: float
    maximum: float


def spread(values: Iterable[float]) -> Spread:
    """Return median, minimum and maximum."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def speed_ratios(pairs: Sequence[Pair]) -> Spread | None:
    """Return the engine's speed divided by the baseline's: per pair, so that a disturbance of both cancels out."""
    found = [pair.baseline.mean_ns / pair.engine.mean_ns for pair in pairs if pair.baseline is not None]
    return spread(found) if found else None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value below which ``percent`` of them lie: one that occurred, not interpolated.

    :param ordered: in ascending order, at least one
    """
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def microseconds(samples: Iterable[Sample]) -> list[float]:
    """Return the times of all iterations of all samples, in ascending order."""
    return sorted(one / 1e3 for sample in samples for one in sample.iterations_ns)


def iterations_for(sample_s: float, iteration_ns: float) -> int:
    """Return how many iterations fill a sample."""
    return max(1, min(MAX_ITERATIONS, int(sample_s * 1e9 / max(iteration_ns, 1))))
