"""What it costs to wake a sleeping event loop: by a counter of ours, by a pipe, by an eventfd of a native thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.latency import facing
from aio_transfer.bench.report.result import times
from aio_transfer.bench.report.statistics import Pair, microseconds, percentile
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.latency_steps import (
    NBYTES,
    PAUSE_S,
    Rounds,
    listen,
    listen_bell,
    listen_pipe,
    tell,
    tell_pipe,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("run",)

MIN_ROUNDS: Final = 20


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure from the call in one process, before its submit, to the awaited count in the other.

    Both are asleep before each. The floor, an eventfd within one process, has no submit and no second interpreter; the
    pipe between the same two processes (``pipe_p50_us``) has a system call in place of the submit.
    """
    rounds = Rounds(max(MIN_ROUNDS, int(options.sample_s / PAUSE_S)))
    async with team(options, (1, 1)) as both:
        provider = await facing(both, options)
        await both.alone(listen, Rounds(MIN_ROUNDS), tell)
        await both.alone(listen_pipe, Rounds(MIN_ROUNDS), tell_pipe)
        pairs: list[Pair] = []
        pipes = []
        for _ in range(options.repeat):
            bell = await both[0].call(listen_bell, rounds)
            ours = await both.alone(listen, rounds, tell)
            pipes.append((await both.alone(listen_pipe, rounds, tell_pipe)).sample())
            pairs.append(Pair(ours.sample(), bell.sample()))
        pipe_us = percentile(microseconds(pipes), 50)
        yield times("wake", options, provider, pairs, nbytes=NBYTES, count=1, pipe_p50_us=pipe_us)
