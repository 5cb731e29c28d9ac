"""The statistics: samples in pairs, their medians, and how far they spread."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ("GIB", "Pair", "Sample", "Spread", "microseconds", "percentile", "ratios", "rounds_for", "spread")

GIB: Final = 1 << 30
MAX_ROUNDS: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement: some rounds without a pause.

    :param rounds_ns: how long each round took, for the distribution; they may overlap
    :param cpu_ns: user and system time of all processes that took part
    """

    elapsed_ns: int
    rounds_ns: Sequence[int]
    cpu_ns: int = 0

    @property
    def round_ns(self) -> float:
        """Time per round."""
        return self.elapsed_ns / max(1, len(self.rounds_ns))


class Pair(NamedTuple):
    """Us and the floor, right after one another; ``None`` where there is no floor."""

    ours: Sample
    floor: Sample | None


class Spread(NamedTuple):
    """What several samples say."""

    median: float
    least: float
    most: float


def spread(values: Iterable[float]) -> Spread:
    """Return median, least and most."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def ratios(pairs: Sequence[Pair]) -> Spread | None:
    """Return how fast we are for the floor's 1: per pair, so that what disturbs both cancels out."""
    found = [pair.floor.round_ns / pair.ours.round_ns for pair in pairs if pair.floor is not None]
    return spread(found) if found else None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value below which ``percent`` of them lie, the nearest that occurred.

    :param ordered: in ascending order, at least one
    """
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def microseconds(samples: Iterable[Sample]) -> list[float]:
    """Return the time of every round of all samples, in ascending order."""
    return sorted(one / 1e3 for sample in samples for one in sample.rounds_ns)


def rounds_for(sample_s: float, round_ns: float) -> int:
    """Return how many rounds fill a sample."""
    return max(1, min(MAX_ROUNDS, int(sample_s * 1e9 / max(round_ns, 1))))
