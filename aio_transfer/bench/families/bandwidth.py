"""Bandwidth measurement: alternating samples of the engine and of the baseline, in the same two workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from aio_transfer.bench.baselines.catalog import prepare_baseline
from aio_transfer.bench.report.result import bandwidth_result
from aio_transfer.bench.report.statistics import Pair, iterations_for, microseconds, percentile, spread
from aio_transfer.bench.workers.bandwidth_steps import (
    MoveBatches,
    Timings,
    VerifyBytes,
    move_batches,
    verify_bytes,
)

if TYPE_CHECKING:
    from aio_transfer.bench.baselines.catalog import Baseline
    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result, Workload
    from aio_transfer.bench.workers.coordinator import Coordinator
    from aio_transfer.bench.workers.worker_state import AllocatedMemory

__all__ = ("SEED", "connect_source_to_target", "measure_bandwidth")

SEED: Final = 7
CALIBRATION_ITERATIONS: Final = 3


async def connect_source_to_target(coordinator: Coordinator, options: Options, nbytes: int) -> AllocatedMemory:
    """Allocate the target in the second worker and the source in the first, and connect; returns the target."""
    target = await coordinator[1].allocate_memory(nbytes, foreign=options.foreign)
    await coordinator[0].allocate_memory(nbytes, foreign=options.foreign, seed=SEED)
    await coordinator[0].connect([target])
    return target


async def measure_bandwidth(coordinator: Coordinator, workload: Workload, *, depth: int) -> Result:
    """Measure one workload whose target is in the second worker. ``workload.test`` is the kind of batch.

    The first iterations run through the engine alone, and their bytes and counts are verified: they are warm-up,
    calibration and correctness check.
    """
    options = workload.options
    batch = MoveBatches(kind=workload.test, nbytes=workload.nbytes, count=workload.count, depth=depth)
    first = await _move_and_count(coordinator, _with(batch, CALIBRATION_ITERATIONS))
    verify = VerifyBytes(kind=batch.kind, nbytes=batch.nbytes, count=batch.count, seed=SEED)
    await coordinator[1].call(verify_bytes, verify)
    second = await _move_and_count(coordinator, _with(batch, CALIBRATION_ITERATIONS))
    iterations = iterations_for(options.sample_s, min(first.sample().mean_ns, second.sample().mean_ns))
    baseline = await prepare_baseline(coordinator, options, batch)
    timings, pairs = await _measure_pairs(coordinator, baseline, _with(batch, iterations), options.repeat)
    submits_us = sorted(one / 1e3 for one_sample in timings for one in one_sample.submits_ns)
    more: dict[str, object] = {
        "depth": depth,
        "iterations": iterations,
        "submit_p50_us": percentile(submits_us, 50),
        "loop_sleeps_per_batch": spread(one.sleeps / iterations for one in timings).median,
    }
    if baseline is not None:
        baseline_us = microseconds(pair.baseline for pair in pairs if pair.baseline is not None)
        more |= {"baseline": baseline.name, "baseline_p50_us": percentile(baseline_us, 50)}
    return bandwidth_result(workload, pairs, **more)


async def _measure_pairs(
    coordinator: Coordinator, baseline: Baseline | None, batch: MoveBatches, repeat: int
) -> tuple[list[Timings], list[Pair]]:
    """Measure engine and baseline in turns; returns the engine's timings, and the samples of both."""
    timings: list[Timings] = []
    pairs: list[Pair] = []
    for index in range(repeat):
        baseline_timings: Timings | None = None
        if baseline is not None and index % 2:  # the second one profits from the caches that the first one filled
            baseline_timings = await baseline.move(batch)
        timings.append(await _move_and_count(coordinator, batch))
        if baseline is not None and baseline_timings is None:
            baseline_timings = await baseline.move(batch)
        pairs.append(Pair(timings[-1].sample(), None if baseline_timings is None else baseline_timings.sample()))
    return timings, pairs


async def _move_and_count(coordinator: Coordinator, batch: MoveBatches) -> Timings:
    """Move through the engine, and check that exactly the expected counts arrive."""
    timings = await coordinator[0].call(move_batches, batch)
    if batch.kind == "scatter":
        for memory in range(batch.count):
            await coordinator[1].await_counts(batch.iterations, memory)
    else:
        await coordinator[1].await_counts(batch.iterations * batch.count)
    return timings


def _with(batch: MoveBatches, iterations: int) -> MoveBatches:
    return msgspec.structs.replace(batch, iterations=iterations)
