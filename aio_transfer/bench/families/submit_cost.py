"""Cost of a submit call on the event loop's thread, and the share of planning in it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from aio_transfer.bench.families.bandwidth import connect_source_to_target
from aio_transfer.bench.report.result import Workload
from aio_transfer.bench.report.statistics import percentile
from aio_transfer.bench.workers.bandwidth_steps import chunk_order
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.worker_state import WorkerState
from aio_transfer.driver.records import ANY_REGION, PeerNumber
from aio_transfer.transfers.planner import plan_pages, plan_write
from aio_transfer.transfers.striping import Route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer import Transfer
    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import WorkerClient

__all__ = ("run",)

_T = TypeVar("_T")
COUNT: Final = 4096
PAGE_NBYTES: Final = 4096
MIN_ITERATIONS, MAX_ITERATIONS = 10, 200
ROUTE: Final = Route(peer=PeerNumber(1), remote_region=ANY_REGION, rails=1, max_piece_nbytes=1 << 62)


class PlanAndSubmit(msgspec.Struct, frozen=True):
    """Request to plan and to submit a batch of pages, several times."""

    nbytes: int
    count: int
    iterations: int


class SubmitTimes(msgspec.Struct, frozen=True):
    """Times of each iteration, in nanoseconds.

    :param page_lists: validation of the page ids of both sides
    :param plan: planning of the batch from them
    :param submit: the whole submit: both of these and the post, without the await
    :param plan_write: planning of one contiguous write
    :param submit_write: the submit of a write of 8 bytes, with its copy where the backend makes it in the call
    """

    page_lists: list[int]
    plan: list[int]
    submit: list[int]
    plan_write: list[int]
    submit_write: list[int]


async def plan_and_submit(state: WorkerState, request: PlanAndSubmit) -> SubmitTimes:
    """Perform :class:`PlanAndSubmit`."""
    engine, region, remote = state.engines[0], state.memories[0].region, state.remotes[0]
    source_ids, target_ids = chunk_order(request.count, "source"), chunk_order(request.count, "target")
    nbytes = request.nbytes
    source, target = region.pages(source_ids, nbytes), remote.pages(target_ids, nbytes)

    def submit_pages() -> Transfer:
        return engine.submit_write_pages(region.pages(source_ids, nbytes), remote.pages(target_ids, nbytes))

    def repeat(call: Callable[[], object]) -> list[int]:
        return [_time(call)[0] for _ in range(request.iterations)]

    # The writes after all pages, whose submits leave cold caches behind.
    submits = await _submit_and_await(submit_pages, request.iterations)
    writes = await _submit_and_await(lambda: engine.submit_write(region[0:8], remote[0:8]), request.iterations)
    return SubmitTimes(
        page_lists=repeat(lambda: (region.pages(source_ids, nbytes), remote.pages(target_ids, nbytes))),
        plan=repeat(lambda: plan_pages(source, target, ROUTE, counter=1)),
        submit=submits,
        plan_write=repeat(lambda: plan_write(region[0:8], remote[0:8], ROUTE, counter=1)),
        submit_write=writes,
    )


async def _submit_and_await(submit: Callable[[], Transfer], iterations: int) -> list[int]:
    """Return the times of the submits, without those of the awaits between them."""
    times: list[int] = []
    for _ in range(iterations):
        elapsed, transfer = _time(submit)
        times.append(elapsed)
        await transfer
    return times


def _time(call: Callable[[], _T]) -> tuple[int, _T]:
    since = perf_counter_ns()
    result = call()
    return perf_counter_ns() - since, result


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure; ``p50_us`` and ``p99_us`` are of the whole submit of one batch of pages."""
    count = options.count or COUNT
    for nbytes in options.sizes or (PAGE_NBYTES,):
        async with start_workers(options, (1, 1)) as coordinator:
            target = await connect_source_to_target(coordinator, options, nbytes * count)
            times_us = await _measure(coordinator[0], options, nbytes, count)
        p50 = {name: percentile(values, 50) for name, values in times_us.items()}
        workload = Workload(test="submit-cost", options=options, provider=target.provider, nbytes=nbytes, count=count)
        yield workload.result(
            {
                "plan_us_per_page": p50["plan"] / count,
                "ids_us_per_page": p50["page_lists"] / count,
                "plan_us": p50["plan"],
                "ids_us": p50["page_lists"],
                "plan_write_us": p50["plan_write"],
                "submit_write_us": p50["submit_write"],
                "samples": options.repeat,
                "baseline_reason": "planning moves no bytes",
            },
            p50_us=p50["submit"],
            p99_us=percentile(times_us["submit"], 99),
            iterations_us=times_us["submit"],
        )


async def _measure(worker: WorkerClient, options: Options, nbytes: int, count: int) -> dict[str, list[float]]:
    """Return the times of all samples in microseconds, by field of :class:`SubmitTimes` and in ascending order."""
    iterations = max(MIN_ITERATIONS, min(MAX_ITERATIONS, int(options.sample_s * 1000)))
    request = PlanAndSubmit(nbytes=nbytes, count=count, iterations=iterations)
    times_us: dict[str, list[float]] = {name: [] for name in SubmitTimes.__struct_fields__}
    for _ in range(options.repeat):
        times = await worker.call(plan_and_submit, request)
        for name, values in times_us.items():
            values.extend(one / 1e3 for one in getattr(times, name))
    return {name: sorted(values) for name, values in times_us.items()}
