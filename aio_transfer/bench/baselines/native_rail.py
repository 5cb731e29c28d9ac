"""The raw loop of a network: its native domain in the measured processes, driven by a thread that does only that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from aio_transfer.bench.workers.bandwidth_steps import Move, Moved, places
from aio_transfer.bench.workers.latency_steps import Rounds
from aio_transfer.bench.workers.worker_state import Nothing, Place, cpu_ns

if TYPE_CHECKING:
    from aio_transfer.bench.baselines._baseline import Rail

__all__ = ("RailEnd", "answer_rail", "ask_rail", "join_rail", "move_rail", "offer_rail", "offer_spinning_rail",
           "serve_rail", "stop_rail")  # fmt: skip


class RailEnd(msgspec.Struct, frozen=True):
    """One end of a raw connection, and the key of the memory behind it."""

    end: bytes
    key: bytes
    nbytes: int


async def offer_rail(place: Place, ask: Nothing) -> RailEnd:  # noqa: ARG001 - every step takes something
    """Open a domain of its own, beside the engine's, for the memory that the engine uses."""
    return _open(place, spin=place.start.backend_options[place.start.backend]["progress"] == "spin")


async def offer_spinning_rail(place: Place, ask: Nothing) -> RailEnd:  # noqa: ARG001 - every step takes something
    """Do the same, to spin whatever the engine does: it would hold a processor while others are measured."""
    return _open(place, spin=True)


def _open(place: Place, *, spin: bool) -> RailEnd:
    from aio_transfer.bench.baselines._baseline import Rail

    backend, memory = place.start.backend, place.held[0].array
    options = {name: value for name, value in place.start.backend_options[backend].items() if name != "progress"}
    rail = place.kept["rail"] = Rail(backend, options, not spin, memory.ctypes.data, memory.nbytes)
    end, key = rail.offer()
    return RailEnd(end, key, memory.nbytes)


async def join_rail(place: Place, ask: RailEnd) -> Nothing:
    """Connect to the other end. It may ask us things, which we answer only while we serve or write."""
    _rail(place).join(ask.end, ask.key, ask.nbytes)
    return Nothing()


async def serve_rail(place: Place, ask: Nothing) -> Nothing:  # noqa: ARG001 - every step takes something
    """Progress until :func:`stop_rail`: software providers move nothing at a target that does not."""
    _rail(place).serve()
    return Nothing()


async def stop_rail(place: Place, ask: Nothing) -> Nothing:  # noqa: ARG001 - every step takes something
    """Stop progressing, so as not to disturb what is measured next."""
    _rail(place).stop()
    return Nothing()


async def move_rail(place: Place, ask: Move) -> Moved:
    """Perform :class:`Move`: post, progress, and nothing else."""
    ours, theirs = places(ask)
    sources = np.uint64(place.held[0].array.ctypes.data) + (ours * ask.nbytes).astype(np.uint64)
    targets = (theirs * ask.nbytes).astype(np.uint64)
    before = cpu_ns(place.pids)
    elapsed, rounds = _rail(place).write(sources, targets, ask.nbytes, ask.rounds, ask.depth)
    return Moved(elapsed_ns=elapsed, rounds_ns=rounds, cpu_ns=cpu_ns(place.pids) - before)


async def ask_rail(place: Place, ask: Rounds) -> Moved:
    """Send words and await their answers."""
    before = cpu_ns(place.pids)
    rounds = _rail(place).exchange(ask.count, begins=True)
    return Moved(elapsed_ns=sum(rounds), rounds_ns=rounds, cpu_ns=cpu_ns(place.pids) - before)


async def answer_rail(place: Place, ask: Rounds) -> Nothing:
    """Answer an :func:`ask_rail`."""
    _rail(place).exchange(ask.count, begins=False)
    return Nothing()


def _rail(place: Place) -> Rail:
    rail: Rail = place.kept["rail"]
    return rail
