"""What a submit costs the event loop's thread, and how much of that is planning."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from aio_transfer.bench.families.bandwidth import source_and_target
from aio_transfer.bench.report.result import Result, setting
from aio_transfer.bench.report.statistics import percentile
from aio_transfer.bench.workers.bandwidth_steps import chunks
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.worker_state import Place
from aio_transfer.driver.records import ANY_REGION, PeerNumber
from aio_transfer.transfers.planner import plan_pages, plan_write
from aio_transfer.transfers.striping import Route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options

__all__ = ("run",)

_T = TypeVar("_T")
COUNT: Final = 4096
PAGE: Final = 4096
ROUTE: Final = Route(peer=PeerNumber(1), remote_region=ANY_REGION, rails=1, max_piece_nbytes=1 << 62)


class Plans(msgspec.Struct, frozen=True):
    """Plan and submit so many pages, so often."""

    nbytes: int
    count: int
    rounds: int


class Planned(msgspec.Struct, frozen=True):
    """How long each took, in nanoseconds, round by round.

    :param name: checking the ids of both sides
    :param plan: making the batch of them
    :param submit: all of that, and handing it over, without the await
    :param write: planning one contiguous write
    :param submit_write: the submit of one of 8 bytes, and its copy, done in the call where the backend does so
    """

    name: list[int]
    plan: list[int]
    submit: list[int]
    write: list[int]
    submit_write: list[int]


async def plans(place: Place, ask: Plans) -> Planned:
    """Perform :class:`Plans`."""
    engine, region, remote = place.engines[0], place.held[0].region, place.remotes[0]
    ours, theirs, nbytes = chunks(ask.count, "source"), chunks(ask.count, "target"), ask.nbytes
    source, target = region.pages(ours, nbytes), remote.pages(theirs, nbytes)

    def repeat(call: Callable[[], object]) -> list[int]:
        return [_time(call)[0] for _ in range(ask.rounds)]

    submits: list[int] = []
    writes: list[int] = []
    for _ in range(ask.rounds):
        took, transfer = _time(
            lambda: engine.submit_write_pages(region.pages(ours, nbytes), remote.pages(theirs, nbytes))
        )
        submits.append(took)
        await transfer
    for _ in range(ask.rounds):  # not between the others, which leave cold caches behind
        took, transfer = _time(lambda: engine.submit_write(region[0:8], remote[0:8]))
        writes.append(took)
        await transfer
    return Planned(
        name=repeat(lambda: (region.pages(ours, nbytes), remote.pages(theirs, nbytes))),
        plan=repeat(lambda: plan_pages(source, target, ROUTE, counter=1)),
        submit=submits,
        write=repeat(lambda: plan_write(region[0:8], remote[0:8], ROUTE, counter=1)),
        submit_write=writes,
    )


def _time(call: Callable[[], _T]) -> tuple[int, _T]:
    since = perf_counter_ns()
    result = call()
    return perf_counter_ns() - since, result


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure; ``p50_us`` and ``p99_us`` are of the whole submit of one batch of pages."""
    count = options.count or COUNT
    for nbytes in options.sizes or (PAGE,):
        async with team(options, (1, 1)) as both:
            target = await source_and_target(both, options, nbytes * count)
            ask = Plans(nbytes=nbytes, count=count, rounds=max(10, min(200, int(options.sample_s * 1000))))
            said: dict[str, list[float]] = {}
            for _ in range(options.repeat):
                planned = await both[0].call(plans, ask)
                for name in planned.__struct_fields__:
                    said.setdefault(name, []).extend(one / 1e3 for one in getattr(planned, name))
        ordered = {name: sorted(values) for name, values in said.items()}
        p50 = {name: percentile(values, 50) for name, values in ordered.items()}
        yield Result(
            test="plan",
            backend=options.backend,
            provider=target.provider,
            nbytes=nbytes,
            count=count,
            p50_us=p50["submit"],
            p99_us=percentile(ordered["submit"], 99),
            more={
                **setting(options),
                "plan_us_per_page": p50["plan"] / count,
                "ids_us_per_page": p50["name"] / count,
                "plan_us": p50["plan"],
                "ids_us": p50["name"],
                "plan_write_us": p50["write"],
                "submit_write_us": p50["submit_write"],
                "samples": options.repeat,
                "floor_reason": "planning moves no bytes",
            },
            rounds_us=ordered["submit"],
        )
