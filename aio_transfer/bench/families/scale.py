"""Small writes with few and with many connected peers. One process has all peers' engines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.bandwidth import SEED
from aio_transfer.bench.report.result import Workload, latency_result
from aio_transfer.bench.report.statistics import Pair, iterations_for
from aio_transfer.bench.workers.bandwidth_steps import Timings
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.bench.workers.latency_steps import WORD_NBYTES, Iterations
from aio_transfer.bench.workers.worker_state import WorkerState, cpu_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import Coordinator

__all__ = ("run",)

PEERS: Final = 256
BASELINE_PEERS: Final = 64
WRITE_NS: Final = 20_000
WRITES_PER_TURN: Final = 8
"""Writes to one peer before the next peer's turn, as in a server with many peers."""


async def write_in_turns(state: WorkerState, request: Iterations) -> Timings:
    """Write to all peers in turns, some writes each, and await each write."""
    engine, source = state.engines[0], state.memories[0].region[0:WORD_NBYTES]
    targets = [remote[0:WORD_NBYTES] for remote in state.remotes]
    iterations: list[int] = []
    now = time.perf_counter_ns
    cpu_before = cpu_ns(state.peer_pids)
    for index in range(request.count):
        target = targets[index // WRITES_PER_TURN % len(targets)]
        since = now()
        await engine.write(source, target)
        iterations.append(now() - since)
    return Timings(elapsed_ns=sum(iterations), iterations_ns=iterations, cpu_ns=cpu_ns(state.peer_pids) - cpu_before)


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure an engine with many peers; the baseline is one with few, in turns with it."""
    peers = options.peers or PEERS
    few = min(BASELINE_PEERS, peers)
    iterations = Iterations(iterations_for(options.sample_s, WRITE_NS))
    pairs: list[Pair] = []
    async with start_workers(options, (1, few)) as small, start_workers(options, (1, peers)) as large:
        await _connect(small, few)
        provider = await _connect(large, peers)
        for _ in range(options.repeat):
            baseline = await small[0].call(write_in_turns, iterations)
            engine = await large[0].call(write_in_turns, iterations)
            pairs.append(Pair(engine.sample(), baseline.sample()))
    workload = Workload(test="scale", options=options, provider=provider, nbytes=WORD_NBYTES, count=1)
    yield latency_result(workload, pairs, peers=peers, baseline_peers=few)


async def _connect(coordinator: Coordinator, peers: int) -> str:
    """Connect the first worker to all engines of the second; returns the provider."""
    targets = [await coordinator[1].allocate_memory(WORD_NBYTES, engine=peer) for peer in range(peers)]
    await coordinator[0].allocate_memory(WORD_NBYTES, seed=SEED)
    await coordinator[0].connect(targets)
    # One turn per peer, so that the page faults and the first use of each connection are not measured.
    await coordinator[0].call(write_in_turns, Iterations(peers * WRITES_PER_TURN))
    return targets[0].provider
