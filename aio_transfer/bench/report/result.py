"""Result of one test for one size: the fields of a JSON line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aio_transfer.bench.report.statistics import GIB, microseconds, percentile, speed_ratios, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.statistics import Pair

__all__ = ("NO_BASELINE", "Result", "Workload", "bandwidth_result", "latency_result", "rounded")

NO_BASELINE: Final = "this backend has no baseline here yet"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one test for one size.

    :param nbytes: per chunk
    :param count: chunks per batch
    :param gb_per_s: 10**9 bytes per second; ``None`` if the test does not measure bandwidth
    :param ratio: the engine's speed divided by the baseline's; higher is better, whatever is measured
    :param p50_us: of one batch, from the submit to the end of the await
    :param cpu_s_per_gib: user and system time of both processes
    :param more: further keys of the JSON line
    :param iterations_us: times of all batches in ascending order, for plots; not in the JSON line
    """

    test: str
    backend: str
    provider: str
    nbytes: int
    count: int
    gb_per_s: float | None = None
    baseline_gb_per_s: float | None = None
    ratio: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    cpu_s_per_gib: float | None = None
    more: Mapping[str, object] = {}
    iterations_us: Sequence[float] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the content of the JSON line."""
        line = {name: rounded(getattr(self, name)) for name in self.__struct_fields__[:11]}
        return line | {name: rounded(value) for name, value in self.more.items()}


def rounded(value: object) -> object:
    """Round to four digits, which is more than the noise of a machine allows."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What was measured, and with which options.

    :param provider: of the backend
    :param nbytes: per chunk
    :param count: chunks per batch
    """

    test: str
    options: Options
    provider: str
    nbytes: int = 0
    count: int = 0

    def result(self, more: Mapping[str, object], **values: Any) -> Result:
        """Return a result that also names the workload and its options.

        :param more: further keys of the JSON line
        :param values: other fields of :class:`Result`
        """
        options = self.options
        settings = {"loop": options.loop, "progress": options.progress, "foreign": options.foreign}
        if options.connect:
            settings["connect"] = options.connect
        return Result(
            test=self.test,
            backend=options.backend,
            provider=self.provider,
            nbytes=self.nbytes,
            count=self.count,
            more={**settings, **more},
            **values,
        )


def bandwidth_result(workload: Workload, pairs: Sequence[Pair], **more: object) -> Result:
    """Summarize samples, each iteration of which moves one batch."""
    batch_nbytes = workload.nbytes * workload.count
    engine = spread(batch_nbytes / pair.engine.mean_ns for pair in pairs)
    iterations_us = microseconds(pair.engine for pair in pairs)
    cpu = spread(pair.engine.cpu_ns / len(pair.engine.iterations_ns) / batch_nbytes * GIB / 1e9 for pair in pairs)
    spreads: dict[str, object] = {"gb_per_s_min": engine.minimum, "gb_per_s_max": engine.maximum}
    ratio, baseline = speed_ratios(pairs), None
    if ratio is None:
        spreads["baseline_reason"] = NO_BASELINE
    else:
        baseline = spread(batch_nbytes / pair.baseline.mean_ns for pair in pairs if pair.baseline is not None)
        spreads |= {"baseline_gb_per_s_min": baseline.minimum, "baseline_gb_per_s_max": baseline.maximum}
        spreads |= {"ratio_min": ratio.minimum, "ratio_max": ratio.maximum}
    return workload.result(
        {
            "chunks_per_s": engine.median / workload.nbytes * 1e9,
            "samples": len(pairs),
            **spreads,
            **more,
        },
        gb_per_s=engine.median,
        baseline_gb_per_s=baseline.median if baseline else None,
        ratio=ratio.median if ratio else None,
        p50_us=percentile(iterations_us, 50),
        p99_us=percentile(iterations_us, 99),
        cpu_s_per_gib=None if workload.options.connect else cpu.median,  # of both processes, one on another host
        iterations_us=iterations_us,
    )


def latency_result(workload: Workload, pairs: Sequence[Pair], **more: object) -> Result:
    """Summarize samples whose iterations are timed one by one; the ratio compares medians."""
    iterations_us = microseconds(pair.engine for pair in pairs)
    baseline_us = microseconds(pair.baseline for pair in pairs if pair.baseline is not None)
    times_baseline = spread(
        percentile(microseconds([pair.engine]), 50) / percentile(microseconds([pair.baseline]), 50)
        for pair in pairs
        if pair.baseline is not None
    )
    cpu = spread(pair.engine.cpu_ns / len(pair.engine.iterations_ns) / 1e3 for pair in pairs)
    return workload.result(
        {
            "baseline_p50_us": percentile(baseline_us, 50),
            "baseline_p99_us": percentile(baseline_us, 99),
            "times_baseline": times_baseline.median,
            "times_baseline_min": times_baseline.minimum,
            "times_baseline_max": times_baseline.maximum,
            "cpu_us_per_iteration": None if workload.options.connect else cpu.median,
            "samples": len(pairs),
            **more,
        },
        ratio=1 / times_baseline.median,
        p50_us=percentile(iterations_us, 50),
        p99_us=percentile(iterations_us, 99),
        iterations_us=iterations_us,
    )
