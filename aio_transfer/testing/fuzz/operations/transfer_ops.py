"""Transfer operations: writes, pages, scatters, notifications and reads."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import anyio
import numpy as np

from aio_transfer.errors import AioTransferError, ClosedError
from aio_transfer.testing.assertions import refused
from aio_transfer.testing.fixtures import turns
from aio_transfer.testing.fuzz.model.arena import ARENA_NBYTES, Chunk
from aio_transfer.testing.fuzz.model.engine_model import TransferPart
from aio_transfer.testing.fuzz.model.world import World, perform
from aio_transfer.testing.fuzz.operations.definitions import (
    SIZES,
    CancelledWrite,
    NotifyPeer,
    ReadSlice,
    ScatterSlices,
    WriteBurst,
    WritePages,
    WriteSlice,
    WriteToClosedRegion,
    YieldToLoop,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.regions.region import RemoteSlice, Slice
    from aio_transfer.testing.fuzz.model.arena import Arena
    from aio_transfer.testing.fuzz.model.engine_model import EngineModel
    from aio_transfer.transfers.transfer import Transfer

__all__: tuple[str, ...] = ()  # the import registers the operations

_MAX_PAGES = 16
_MAX_PAGES_NBYTES = 48 << 10
_MAX_BURST = 24
_UNCOUNTED = 3
"""Of four values of ``quiet``, the one for a write that does not count."""


def _offset(at: int, nbytes: int) -> int:
    """Spread the few values of ``at`` over a source, also to unaligned offsets."""
    return at * 3571 % (ARENA_NBYTES - nbytes + 1)


def _slice(by: EngineModel, at: int, nbytes: int) -> Slice:
    offset = _offset(at, nbytes)
    return by.source.registration.region[offset : offset + nbytes]


def _target(arena: Arena, chunk: Chunk) -> RemoteSlice:
    return arena.registration.remote[chunk.offset : chunk.offset + chunk.nbytes]


def _can_submit(arena: Arena, attempt: Callable[[], object]) -> bool:
    """Return whether the arena's region is open; if it is not, check that it cannot be used."""
    if arena.is_open:
        return True
    with refused(f"to use {arena.registration.region.name}, which is closing", ClosedError):
        attempt()
    return False


@perform.register
async def write_slice(operation: WriteSlice, world: World) -> None:
    """Submit a write, and maybe await it."""
    transfer = _write(world, operation, operation.quiet)
    if transfer is not None:
        _await(world, transfer, f"a write to {transfer.peer}")


def _write(world: World, operation: WriteSlice | CancelledWrite, quiet: int) -> Transfer | None:
    pair = world.pick_pair(operation.by, operation.to)
    if pair is None or not _can_submit(pair[0].source, lambda: pair[0].source.registration.region[:]):
        return None
    by, to = pair
    arena = to.targets[operation.slot % len(to.targets)]
    source = _slice(by, operation.at, arena.room_for(SIZES[operation.size % len(SIZES)]))
    chunk = arena.reserve(source.array, operation.at)
    counted = quiet % (_UNCOUNTED + 1) != _UNCOUNTED
    transfer = by.engine.submit_write(
        source, _target(arena, chunk), counter=to.counter_model.reference, counted=counted
    )
    by.source.add_lease(transfer)
    world.add_part(TransferPart(transfer, by, to, arena.registration, [chunk], int(counted)))
    return transfer


def _await(world: World, transfer: Transfer, what: str) -> None:
    """Await two of three transfers: a transfer goes on without an await."""
    if len(world.parts) % 3:
        world.start_task(what, transfer.wait)


@perform.register
async def write_pages(operation: WritePages, world: World) -> None:
    """Submit pages in a random order on each side."""
    pair = world.pick_pair(operation.by, operation.to)
    if pair is None:
        return
    by, to = pair
    arena = to.targets[operation.slot % len(to.targets)]
    if not _can_submit(by.source, lambda: by.source.registration.region.pages([0], 1)):
        return
    nbytes = SIZES[operation.size % len(SIZES)]
    count = min(operation.count % (_MAX_PAGES + 1), max(1, arena.room_for(_MAX_PAGES_NBYTES) // max(1, nbytes)))
    if nbytes * count > arena.room_for(nbytes * count):
        return
    here, there = _shuffled(operation.order, count)
    stride = max(1, nbytes)  # empty pages have offsets too
    source = by.source.registration.region
    first = _offset(operation.order, stride * count)
    rows = source.array[first : first + stride * count].reshape(count, stride)[:, :nbytes]
    chunks = arena.reserve_pages(rows[here][np.argsort(there)])
    base = chunks[0].offset if chunks else 0
    transfer = by.engine.submit_write_pages(
        source.pages(here, nbytes, stride_nbytes=stride, offset_nbytes=first),
        arena.registration.remote.pages(there, nbytes, stride_nbytes=nbytes, offset_nbytes=base),
        counter=to.counter_model.reference,
    )
    by.source.add_lease(transfer)
    world.add_part(TransferPart(transfer, by, to, arena.registration, chunks, count))
    _await(world, transfer, f"pages to {to.name}")


def _shuffled(order: int, count: int) -> tuple[list[int], list[int]]:
    rng = random.Random(order)
    return rng.sample(range(count), count), rng.sample(range(count), count)


@perform.register
async def write_burst(operation: WriteBurst, world: World) -> None:
    """Submit many writes without yielding to the event loop."""
    for index in range(operation.count % (_MAX_BURST + 1)):
        _write(world, WriteSlice(operation.by, operation.to, operation.slot, 0, index, 0), quiet=0)


@perform.register
async def scatter_slices(operation: ScatterSlices, world: World) -> None:
    """Submit one slice per other engine; two regions of each where the slot is odd."""
    by = world.pick_open(operation.by)
    if by is None or not _can_submit(by.source, lambda: by.source.registration.region[:]):
        return
    sources: list[Slice] = []
    targets: list[RemoteSlice] = []
    parts: list[tuple[EngineModel, Arena, Chunk]] = []
    for to in world.nodes:
        if to is by or to.state == "killed":
            continue
        arenas = to.targets if operation.slot % 2 else (to.targets[operation.slot // 2 % len(to.targets)],)
        for arena in arenas:
            nbytes = arena.room_for(SIZES[(operation.size + len(sources)) % len(SIZES)])
            source = _slice(by, operation.at + len(sources), nbytes)
            chunk = arena.reserve(source.array)
            sources.append(source)
            targets.append(_target(arena, chunk))
            parts.append((to, arena, chunk))
    counters = [to.counter_model.reference for to, _, _ in parts]
    transfer = by.engine.submit_scatter(sources, targets, counters=counters)
    by.source.add_lease(transfer)
    for to, arena, chunk in parts:
        world.add_part(TransferPart(transfer, by, to, arena.registration, [chunk], 1))
    _await(world, transfer, "a scatter")


@perform.register
async def notify_peer(operation: NotifyPeer, world: World) -> None:
    """Submit a count without a payload."""
    pair = world.pick_pair(operation.by, operation.to)
    if pair is not None:
        by, to = pair
        transfer = by.engine.submit_notify(to.counter_model.reference)
        world.add_part(TransferPart(transfer, by, to, None, [], 1))
        _await(world, transfer, f"a notification to {to.name}")


@perform.register
async def cancelled_write(operation: CancelledWrite, world: World) -> None:
    """Submit a write in a scope that is cancelled already, as ``engine.write`` does."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        transfer = _write(world, operation, quiet=0)
        if transfer is not None:
            with contextlib.suppress(AioTransferError):  # verified with all other transfers
                await transfer


@perform.register
async def read_slice(operation: ReadSlice, world: World) -> None:
    """Submit a read from another engine's source into a target of this engine."""
    pair = world.pick_pair(operation.by, operation.of)
    if pair is None or not world.mesh.spec.reads:
        return
    by, owner = pair
    arena = by.targets[operation.slot % len(by.targets)]
    if not _can_submit(arena, lambda: arena.registration.region[:]):
        return
    nbytes = arena.room_for(SIZES[operation.size % len(SIZES)])
    first = _offset(operation.at, nbytes)
    chunk = arena.reserve(owner.source.array[first : first + nbytes], operation.at)
    local = arena.registration.region[chunk.offset : chunk.offset + nbytes]
    transfer = by.engine.submit_read(local, owner.source.registration.remote[first : first + nbytes])
    arena.add_lease(transfer)
    world.add_part(TransferPart(transfer, by, owner, owner.source.registration, [chunk], 0))
    _await(world, transfer, f"a read of {owner.name}")


@perform.register
async def write_to_closed_region(operation: WriteToClosedRegion, world: World) -> None:
    """Write with the descriptor of a region that is closed; its memory may have been registered again."""
    by = world.pick_open(operation.by)
    candidates = [(to, one) for to, one in world.closed_registrations if to is not by and to.state != "killed"]
    if by is None or not candidates or not by.source.is_open:
        return
    to, registration = candidates[operation.which % len(candidates)]
    nbytes = max(1, SIZES[operation.size % len(SIZES)])
    first = _offset(operation.at, nbytes)
    target = registration.remote[first : first + nbytes]
    transfer = by.engine.submit_write(_slice(by, operation.at, nbytes), target, counter=to.counter_model.reference)
    by.source.add_lease(transfer)
    world.add_part(TransferPart(transfer, by, to, registration, [Chunk.forbidden(registration.arena)], 1))
    _await(world, transfer, f"a stale write to {to.name}")


@perform.register
async def yield_to_loop(operation: YieldToLoop, world: World) -> None:
    """Yield to the event loop some times."""
    await turns(operation.count)
    world.check(f"within step {world.step}, YieldToLoop")
