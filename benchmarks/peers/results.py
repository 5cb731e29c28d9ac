"""One line of the outcome: a work, on a path, through us and through one other library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from environments import CannotRunError

from aio_transfer.bench.report.result import rounded
from aio_transfer.bench.report.statistics import GIB, microseconds, percentile, ratios, spread

if TYPE_CHECKING:
    from catalog import Peer
    from works import Work

    from aio_transfer.bench.report.statistics import Pair, Sample

PROVIDERS: Final = {"shm": ("shm", "memfd"), "foreign": ("shm", "process_vm_writev"), "tcp": ("tcp", "sockets")}


class Case(NamedTuple):
    """What is compared; ``progress`` is ours."""

    peer: Peer
    path: str
    work: Work
    progress: str = "adaptive"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The keys are those of ``aio-transfer bench``, with ``peer_…`` where that has ``floor_…``.

    :param gb_per_s: ours; ``None`` where time is the question, as of ``peer_gb_per_s``
    :param ratio: our speed for the peer's 1, the median of the pairs' own: higher is better for us
    :param reason: why there is nothing to compare
    :param more: least and most of each, and how it was measured
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
        """Return what the JSON line holds."""
        line = {name: getattr(self, name) for name in self.__struct_fields__ if name != "more"} | dict(self.more)
        return {name: rounded(value) for name, value in line.items()}


def compared(case: Case, pairs: Sequence[Pair], loopback: float) -> Result:
    """Sum up alternating samples; ``floor`` of each pair is the peer's.

    :param loopback: bytes that the peer sent over the loopback device, per byte moved
    :raises CannotRunError: it took another path than was asked for
    """
    if case.path == "tcp" and loopback < 1:
        raise CannotRunError(f"it sent only {loopback:.2g} bytes over TCP for each that was to be moved")
    ratio = ratios(pairs)
    assert ratio is not None, "every pair has both"  # noqa: S101
    more: dict[str, object] = {"ratio_min": ratio.least, "ratio_max": ratio.most}
    more |= {"samples": len(pairs), "depth": case.work.depth, "peer_loopback": loopback}
    figures: dict[str, float] = {"ratio": ratio.median}
    theirs = [pair.floor for pair in pairs if pair.floor is not None]
    for prefix, samples in (("", [pair.ours for pair in pairs]), ("peer_", theirs)):
        times = microseconds(samples)
        figures |= {f"{prefix}p50_us": percentile(times, 50), f"{prefix}p99_us": percentile(times, 99)}
        more[f"{prefix}rounds"] = len(samples[0].rounds_ns)
        if case.work.test == "latency":
            more[f"{prefix}cpu_us_per_round"] = spread(map(cpu_us, samples)).median
            continue
        moved = case.work.moved
        speed = spread(moved / sample.round_ns for sample in samples)
        more |= {f"{prefix}gb_per_s_min": speed.least, f"{prefix}gb_per_s_max": speed.most}
        figures[f"{prefix}gb_per_s"] = speed.median
        figures[f"{prefix}cpu_s_per_gib"] = spread(cpu_us(sample) / 1e6 / moved * GIB for sample in samples).median
    return result(case, more=more, **figures)


def cpu_us(sample: Sample) -> float:
    """Return user and system time per round, of both processes."""
    return sample.cpu_ns / len(sample.rounds_ns) / 1e3


def result(case: Case, **known: object) -> Result:
    """Return a result that says what was asked, and whatever is known."""
    peer, work = case.peer, case.work
    known |= dict(zip(("backend", "provider"), PROVIDERS[case.path], strict=True))
    known |= {"test": work.test, "nbytes": work.nbytes, "count": work.count, "peer": peer.name}
    return Result(version=peer.version, path=case.path, progress=case.progress, **known)  # type: ignore[arg-type]
