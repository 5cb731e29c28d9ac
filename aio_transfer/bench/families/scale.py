"""What a small write costs with few peers connected, and with many. The peers are engines of one other process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aio_transfer.bench.families.bandwidth import SEED
from aio_transfer.bench.report.result import times
from aio_transfer.bench.report.statistics import Pair, rounds_for
from aio_transfer.bench.workers.bandwidth_steps import Moved
from aio_transfer.bench.workers.coordinator import team
from aio_transfer.bench.workers.latency_steps import Rounds
from aio_transfer.bench.workers.worker_state import Place, cpu_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result
    from aio_transfer.bench.workers.coordinator import Team

__all__ = ("run",)

PEERS: Final = 256
FEW: Final = 64
NBYTES: Final = 8
WRITE_NS: Final = 20_000
TURNS: Final = 8
"""Writes to one peer before the next one's turn comes, as a server of many does."""


async def rotate(place: Place, ask: Rounds) -> Moved:
    """Write to all peers in turns, some writes to each, and await each."""
    engine, source = place.engines[0], place.held[0].region[0:NBYTES]
    targets = [remote[0:NBYTES] for remote in place.remotes]
    rounds: list[int] = []
    now = time.perf_counter_ns
    before = cpu_ns(place.pids)
    for index in range(ask.count):
        target = targets[index // TURNS % len(targets)]
        since = now()
        await engine.write(source, target)
        rounds.append(now() - since)
    return Moved(elapsed_ns=sum(rounds), rounds_ns=rounds, cpu_ns=cpu_ns(place.pids) - before)


async def run(options: Options) -> AsyncGenerator[Result]:
    """Measure; the floor is an engine with few peers, in turns with the one that has many."""
    peers = options.peers or PEERS
    few = min(FEW, peers)
    ask = Rounds(rounds_for(options.sample_s, WRITE_NS))
    pairs: list[Pair] = []
    async with team(options, (1, few)) as small, team(options, (1, peers)) as large:
        await _connect(small, few)
        provider = await _connect(large, peers)
        for _ in range(options.repeat):
            floor = await small[0].call(rotate, ask)
            ours = await large[0].call(rotate, ask)
            pairs.append(Pair(ours.sample(), floor.sample()))
    yield times("scale", options, provider, pairs, nbytes=NBYTES, count=1, peers=peers, floor_peers=few)


async def _connect(both: Team, peers: int) -> str:
    """Return what carries the bytes."""
    targets = [await both[1].offer(NBYTES, engine=peer) for peer in range(peers)]
    await both[0].offer(NBYTES, seed=SEED)
    await both[0].aim(targets)
    await both[0].call(rotate, Rounds(peers * TURNS))  # each once, so that both sides have touched what they need
    return targets[0].provider
