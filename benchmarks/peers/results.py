"""Result of one comparison: a workload on a path, by aio-transfer and by one other library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from environments import CannotRunError

from aio_transfer.bench.report.result import rounded
from aio_transfer.bench.report.statistics import GIB, microseconds, percentile, speed_ratios, spread

if TYPE_CHECKING:
    from catalog import Peer
    from workloads import Workload

    from aio_transfer.bench.report.statistics import Pair, Sample

PROVIDERS: Final = {"shm": ("shm", "memfd"), "foreign": ("shm", "process_vm_writev"), "tcp": ("tcp", "sockets")}


class Case(NamedTuple):
    """One comparison; ``progress`` is the option of aio-transfer."""

    peer: Peer
    path: str
    work: Workload
    progress: str = "adaptive"


class ComparisonResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one comparison, with the keys of ``aio-transfer bench``, and ``peer_…`` in place of ``baseline_…``.

    :param gb_per_s: of aio-transfer; ``None`` for latencies, like ``peer_gb_per_s``
    :param ratio: speed of aio-transfer divided by the peer's, the median over all pairs
    :param reason: why the comparison could not run
    :param more: minima, maxima, and how they were measured
    """

    test: str
    backend: str
    provider: str
    nbytes: int
    count: int
    peer: str
    version: str
    gb_per_s: float | None = None
    peer_gb_per_s: float | None = None
    ratio: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    cpu_s_per_gib: float | None = None
    peer_p50_us: float | None = None
    peer_p99_us: float | None = None
    peer_cpu_s_per_gib: float | None = None
    path: str
    progress: str
    reason: str | None = None
    more: Mapping[str, object] = {}

    def as_dict(self) -> dict[str, object]:
        """Return the content of the JSON line."""
        line = {name: getattr(self, name) for name in self.__struct_fields__ if name != "more"} | dict(self.more)
        return {name: rounded(value) for name, value in line.items()}


def compared(case: Case, pairs: Sequence[Pair], loopback: float) -> ComparisonResult:
    """Summarize alternating samples; the baseline of each pair is the peer's sample.

    :param loopback: bytes that the peer sent over the loopback device, per byte moved
    :raises CannotRunError: the peer used another path than the requested one
    """
    if case.path == "tcp" and loopback < 1:
        raise CannotRunError(f"it sent only {loopback:.2g} bytes over TCP per byte to be moved")
    ratio = speed_ratios(pairs)
    assert ratio is not None, "every pair has both samples"  # noqa: S101
    more: dict[str, object] = {"ratio_min": ratio.minimum, "ratio_max": ratio.maximum}
    more |= {"samples": len(pairs), "depth": case.work.depth, "peer_loopback": loopback}
    values: dict[str, float] = {"ratio": ratio.median}
    peer_samples = [pair.baseline for pair in pairs if pair.baseline is not None]
    for prefix, samples in (("", [pair.engine for pair in pairs]), ("peer_", peer_samples)):
        times = microseconds(samples)
        values |= {f"{prefix}p50_us": percentile(times, 50), f"{prefix}p99_us": percentile(times, 99)}
        more[f"{prefix}iterations"] = len(samples[0].iterations_ns)
        if case.work.test == "latency":
            more[f"{prefix}cpu_us_per_iteration"] = spread(map(cpu_us, samples)).median
            continue
        moved = case.work.moved
        speed = spread(moved / sample.mean_ns for sample in samples)
        more |= {f"{prefix}gb_per_s_min": speed.minimum, f"{prefix}gb_per_s_max": speed.maximum}
        values[f"{prefix}gb_per_s"] = speed.median
        values[f"{prefix}cpu_s_per_gib"] = spread(cpu_us(sample) / 1e6 / moved * GIB for sample in samples).median
    return _result(case, more=more, **values)


def cpu_us(sample: Sample) -> float:
    """Return user and system time per iteration, of both processes."""
    return sample.cpu_ns / len(sample.iterations_ns) / 1e3


def failed(case: Case, reason: str) -> ComparisonResult:
    """Return the result of a comparison that could not run."""
    return _result(case, reason=reason)


def _result(case: Case, **known: object) -> ComparisonResult:
    """Return a result with the fields of its case."""
    peer, work = case.peer, case.work
    known |= dict(zip(("backend", "provider"), PROVIDERS[case.path], strict=True))
    known |= {"test": work.test, "nbytes": work.nbytes, "count": work.count, "peer": peer.name}
    return ComparisonResult(version=peer.version, path=case.path, progress=case.progress, **known)  # type: ignore[arg-type]
