"""The raw loop of libfabric: its native domain in the measured processes, driven by a thread that does only that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from aio_transfer.bench.moving import Move, Moved, places
from aio_transfer.bench.place import Nothing, Place, cpu_ns

if TYPE_CHECKING:
    from aio_transfer.backends.core._floor import Rail

__all__ = ("RailEnd", "join_rail", "move_rail", "offer_rail", "serve_rail", "stop_rail")


class RailEnd(msgspec.Struct, frozen=True):
    """One end of a raw connection, and the key of the memory behind it."""

    end: bytes
    key: bytes
    nbytes: int


async def offer_rail(place: Place, ask: Nothing) -> RailEnd:  # noqa: ARG001 - every step takes something
    """Open a domain of its own, beside the engine's, for the memory that the engine uses."""
    from aio_transfer.backends.core._floor import Rail

    memory = place.held[0].array
    options = dict(place.start.backend_options[place.start.backend])
    block = options.pop("progress") != "spin"
    rail = place.kept["rail"] = Rail(options, block, memory.ctypes.data, memory.nbytes)
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


def _rail(place: Place) -> Rail:
    rail: Rail = place.kept["rail"]
    return rail
