"""Which raw loop stands beside a test, and how it is run between two workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aio_transfer.bench.baselines import perftest
from aio_transfer.bench.baselines.native_rail import join_rail, move_rail, offer_rail, serve_rail, stop_rail
from aio_transfer.bench.workers.bandwidth_steps import Move, Moved, move_raw
from aio_transfer.bench.workers.worker_state import Nothing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.workers.coordinator import Team

__all__ = ("Floor", "floor_for")


class Floor(NamedTuple):
    """What a figure stands beside, and how it is run."""

    name: str
    move: Callable[[Move], Awaitable[Moved]]


async def floor_for(team: Team, options: Options, ask: Move) -> Floor | None:
    """Prepare the raw loop, and run it once for its page faults and its connection; ``None`` where there is none."""
    if options.backend == "shm":

        async def copy(ask: Move) -> Moved:
            return await team[0].call(move_raw, ask)

        await copy(ask)
        return Floor("copy", copy)
    if ask.kind == "write" and perftest.is_possible(options):
        return await _perftest(team)
    if options.backend in {"libfabric", "tcp", "verbs"} and ask.kind != "scatter":
        return await _rail(team, ask)
    return None


async def _perftest(team: Team) -> Floor:
    port = await team[0].call(perftest.port, Nothing())

    async def write(ask: Move) -> Moved:
        each = round(await perftest.seconds_per_write(port, ask.nbytes, ask.rounds) * 1e9)
        return Moved(elapsed_ns=each * ask.rounds, rounds_ns=[each] * ask.rounds, cpu_ns=0)  # it tells means alone

    return Floor("ib_write_bw", write)


async def _rail(team: Team, ask: Move) -> Floor:
    ends = await team.all(offer_rail, [Nothing()] * 2)

    async def write(ask: Move) -> Moved:
        await team[1].call(serve_rail, Nothing())
        moved = await team[0].call(move_rail, ask)
        await team[1].call(stop_rail, Nothing())
        return moved

    await team.all(join_rail, ends[::-1])
    await write(ask)
    return Floor("raw loop", write)
