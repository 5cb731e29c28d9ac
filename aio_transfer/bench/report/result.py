"""One line of the outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from aio_transfer.bench.report.statistics import GIB, microseconds, percentile, ratios, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.statistics import Pair

__all__ = ("NO_FLOOR", "Result", "bandwidth", "rounded", "times")

NO_FLOOR: Final = "this backend has no raw loop here yet"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one test found for one size.

    :param nbytes: per chunk
    :param count: chunks per batch
    :param gb_per_s: 10**9 bytes per second; ``None`` where bandwidth is not the question
    :param ratio: how fast we are for the floor's 1; higher is better, whatever is measured
    :param p50_us: of one batch, from the submit to the end of the await
    :param cpu_s_per_gib: user and system time of both processes
    :param more: further keys of the JSON line
    :param rounds_us: all batches' times in ascending order, for plots; not in the JSON line
    """

    test: str
    backend: str
    provider: str
    nbytes: int
    count: int
    gb_per_s: float | None = None
    floor_gb_per_s: float | None = None
    ratio: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    cpu_s_per_gib: float | None = None
    more: Mapping[str, object] = {}
    rounds_us: Sequence[float] = ()

    def as_dict(self) -> dict[str, object]:
        """Return what the JSON line holds."""
        line = {name: rounded(getattr(self, name)) for name in self.__struct_fields__[:11]}
        return line | {name: rounded(value) for name, value in self.more.items()}


def rounded(value: object) -> object:
    """Keep four digits: more would only claim what a noisy machine cannot give."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def bandwidth(  # noqa: PLR0913 - what a line says
    test: str, options: Options, provider: str, pairs: Sequence[Pair], *, nbytes: int, count: int, **more: object
) -> Result:
    """Sum up samples that move ``count`` chunks of ``nbytes`` per round."""
    moved = nbytes * count
    ours = spread(moved / pair.ours.round_ns for pair in pairs)
    floors = [moved / pair.floor.round_ns for pair in pairs if pair.floor is not None]
    floor = spread(floors) if floors else None
    ratio = ratios(pairs)
    rounds_us = microseconds(pair.ours for pair in pairs)
    cpu = spread(pair.ours.cpu_ns / len(pair.ours.rounds_ns) / moved * GIB / 1e9 for pair in pairs)
    spreads: dict[str, object] = {"gb_per_s_min": ours.least, "gb_per_s_max": ours.most}
    if floor is not None and ratio is not None:
        spreads |= {"floor_gb_per_s_min": floor.least, "floor_gb_per_s_max": floor.most}
        spreads |= {"ratio_min": ratio.least, "ratio_max": ratio.most}
    return Result(
        test=test,
        backend=options.backend,
        provider=provider,
        nbytes=nbytes,
        count=count,
        gb_per_s=ours.median,
        floor_gb_per_s=floor.median if floor else None,
        ratio=ratio.median if ratio else None,
        p50_us=percentile(rounds_us, 50),
        p99_us=percentile(rounds_us, 99),
        cpu_s_per_gib=None if options.connect else cpu.median,  # of both processes, and one is far away
        more={
            **setting(options),
            "chunks_per_s": ours.median / nbytes * 1e9,
            "samples": len(pairs),
            **spreads,
            **({} if floor else {"floor_reason": NO_FLOOR}),
            **more,
        },
        rounds_us=rounds_us,
    )


def times(  # noqa: PLR0913 - what a line says
    test: str, options: Options, provider: str, pairs: Sequence[Pair], *, nbytes: int, count: int, **more: object
) -> Result:
    """Sum up samples whose rounds matter one by one, each against the floor's median."""
    rounds_us = microseconds(pair.ours for pair in pairs)
    floor_us = microseconds(pair.floor for pair in pairs if pair.floor is not None)
    p50, floor_p50 = percentile(rounds_us, 50), percentile(floor_us, 50)
    each = [
        percentile(microseconds([pair.ours]), 50) / percentile(microseconds([pair.floor]), 50)
        for pair in pairs
        if pair.floor is not None
    ]
    slower = spread(each)
    cpu = spread(pair.ours.cpu_ns / len(pair.ours.rounds_ns) / 1e3 for pair in pairs)
    return Result(
        test=test,
        backend=options.backend,
        provider=provider,
        nbytes=nbytes,
        count=count,
        ratio=1 / slower.median,
        p50_us=p50,
        p99_us=percentile(rounds_us, 99),
        more={
            **setting(options),
            "floor_p50_us": floor_p50,
            "floor_p99_us": percentile(floor_us, 99),
            "times_floor": slower.median,
            "times_floor_min": slower.least,
            "times_floor_max": slower.most,
            "cpu_us_per_round": None if options.connect else cpu.median,
            "samples": len(pairs),
            **more,
        },
        rounds_us=rounds_us,
    )


def setting(options: Options) -> dict[str, object]:
    """Return how it was run."""
    said = {"loop": options.loop, "progress": options.progress, "foreign": options.foreign}
    return said | ({"connect": options.connect} if options.connect else {})
