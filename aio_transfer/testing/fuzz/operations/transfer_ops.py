"""Moves that move bytes and counts: writes, pages, scatters, notifications, reads."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import anyio
import numpy as np

from aio_transfer.errors import AioTransferError, ClosedError
from aio_transfer.testing.assertions import refused
from aio_transfer.testing.fuzz.model.arena import ARENA_NBYTES, Chunk
from aio_transfer.testing.fuzz.model.tasks import turns
from aio_transfer.testing.fuzz.model.world import Model, play
from aio_transfer.testing.fuzz.operations.definitions import (
    SIZES,
    CancelledWrite,
    Flood,
    Notify,
    Read,
    Scatter,
    Stale,
    Turns,
    Write,
    WritePages,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.regions.region import RemoteSlice, Slice
    from aio_transfer.testing.fuzz.model.arena import Arena
    from aio_transfer.testing.fuzz.model.engine_model import Actor
    from aio_transfer.transfers.transfer import Transfer

__all__: tuple[str, ...] = ()  # to import it is to register its moves

_MAX_PAGES = 16
_MAX_PAGES_NBYTES = 48 << 10
_MAX_FLOOD = 24
_LOUD = 3


def _offset(at: int, nbytes: int) -> int:
    """Spread the few values of ``at`` over a source, also to odd places."""
    return at * 3571 % (ARENA_NBYTES - nbytes + 1)


def _slice(by: Actor, at: int, nbytes: int) -> Slice:
    offset = _offset(at, nbytes)
    return by.source.opened.region[offset : offset + nbytes]


def _room(arena: Arena, chunk: Chunk) -> RemoteSlice:
    return arena.opened.remote[chunk.offset : chunk.offset + chunk.nbytes]


def _can_submit(arena: Arena, attempt: Callable[[], object]) -> bool:
    """Say whether a region of ours is open; if it is not, demand that it cannot be used."""
    if arena.is_open:
        return True
    with refused(f"to use {arena.opened.region.name}, which is closing", ClosedError):
        attempt()
    return False


@play.register
async def write(move: Write, model: Model) -> None:
    """Submit a write, and await it somewhere."""
    transfer = _write(model, move, move.quiet)
    if transfer is not None:
        _await(model, transfer, f"a write to {transfer.peer}")


def _write(model: Model, move: Write | CancelledWrite, quiet: int) -> Transfer | None:
    two = model.pick_two(move.by, move.to)
    if two is None or not _can_submit(two[0].source, lambda: two[0].source.opened.region[:]):
        return None
    by, to = two
    arena = to.targets[move.slot % len(to.targets)]
    source = _slice(by, move.at, arena.fit(SIZES[move.size % len(SIZES)]))
    chunk = arena.take(source.array, move.at)
    counted = quiet % (_LOUD + 1) != _LOUD
    transfer = by.engine.submit_write(source, _room(arena, chunk), counter=to.tally.reference, counted=counted)
    by.source.lease(transfer)
    model.submitted(transfer, by, to, arena.opened, [chunk], int(counted))
    return transfer


def _await(model: Model, transfer: Transfer, what: str) -> None:
    """Let a task await a transfer; not each, as nobody has to."""
    if len(model.parts) % 3:
        model.start(what, transfer.wait)


@play.register
async def write_pages(move: WritePages, model: Model) -> None:
    """Submit pages, each from a place and to a place of its own."""
    two = model.pick_two(move.by, move.to)
    if two is None:
        return
    by, to = two
    arena = to.targets[move.slot % len(to.targets)]
    if not _can_submit(by.source, lambda: by.source.opened.region.pages([0], 1)):
        return
    nbytes = SIZES[move.size % len(SIZES)]
    count = min(move.count % (_MAX_PAGES + 1), max(1, arena.fit(_MAX_PAGES_NBYTES) // max(1, nbytes)))
    if nbytes * count > arena.fit(nbytes * count):
        return
    here, there = _shuffled(move.order, count)
    stride = max(1, nbytes)  # pages of nothing have places too
    source = by.source.opened.region
    first = _offset(move.order, stride * count)
    rows = source.array[first : first + stride * count].reshape(count, stride)[:, :nbytes]
    chunks = arena.take_rows(rows[here][np.argsort(there)])
    base = chunks[0].offset if chunks else 0
    transfer = by.engine.submit_write_pages(
        source.pages(here, nbytes, stride_nbytes=stride, offset_nbytes=first),
        arena.opened.remote.pages(there, nbytes, stride_nbytes=nbytes, offset_nbytes=base),
        counter=to.tally.reference,
    )
    by.source.lease(transfer)
    model.submitted(transfer, by, to, arena.opened, chunks, count)
    _await(model, transfer, f"pages to {to.name}")


def _shuffled(order: int, count: int) -> tuple[list[int], list[int]]:
    rng = random.Random(order)  # noqa: S311 - to be repeated
    return rng.sample(range(count), count), rng.sample(range(count), count)


@play.register
async def flood(move: Flood, model: Model) -> None:
    """Submit many writes in one turn of the loop."""
    for index in range(move.count % (_MAX_FLOOD + 1)):
        _write(model, Write(move.by, move.to, move.slot, 0, index, 0), quiet=0)


@play.register
async def scatter(move: Scatter, model: Model) -> None:
    """Submit one slice per other engine; two regions of each where the slot is odd."""
    by = model.pick(move.by)
    if by is None or not _can_submit(by.source, lambda: by.source.opened.region[:]):
        return
    sources: list[Slice] = []
    targets: list[RemoteSlice] = []
    parts: list[tuple[Actor, Arena, Chunk]] = []
    for to in model.actors:
        if to is by or to.state == "killed":
            continue
        arenas = to.targets if move.slot % 2 else (to.targets[move.slot // 2 % len(to.targets)],)
        for arena in arenas:
            nbytes = arena.fit(SIZES[(move.size + len(sources)) % len(SIZES)])
            source = _slice(by, move.at + len(sources), nbytes)
            chunk = arena.take(source.array)
            sources.append(source)
            targets.append(_room(arena, chunk))
            parts.append((to, arena, chunk))
    counters = [to.tally.reference for to, _, _ in parts]
    transfer = by.engine.submit_scatter(sources, targets, counters=counters)
    by.source.lease(transfer)
    for to, arena, chunk in parts:
        model.submitted(transfer, by, to, arena.opened, [chunk], 1)
    _await(model, transfer, "a scatter")


@play.register
async def notify(move: Notify, model: Model) -> None:
    """Submit a count without a payload."""
    two = model.pick_two(move.by, move.to)
    if two is not None:
        by, to = two
        transfer = by.engine.submit_notify(to.tally.reference)
        model.submitted(transfer, by, to, None, [], 1)
        _await(model, transfer, f"a notification to {to.name}")


@play.register
async def cancelled_write(move: CancelledWrite, model: Model) -> None:
    """Submit a write in a scope that is cancelled already, as ``engine.write`` does."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        transfer = _write(model, move, quiet=0)
        if transfer is not None:
            with contextlib.suppress(AioTransferError):  # judged with all others
                await transfer


@play.register
async def read(move: Read, model: Model) -> None:
    """Submit a read of somebody's source into a target of ours."""
    two = model.pick_two(move.by, move.of)
    if two is None or not model.mesh.spec.reads:
        return
    by, owner = two
    arena = by.targets[move.slot % len(by.targets)]
    if not _can_submit(arena, lambda: arena.opened.region[:]):
        return
    nbytes = arena.fit(SIZES[move.size % len(SIZES)])
    first = _offset(move.at, nbytes)
    chunk = arena.take(owner.source.array[first : first + nbytes], move.at)
    local = arena.opened.region[chunk.offset : chunk.offset + nbytes]
    transfer = by.engine.submit_read(local, owner.source.opened.remote[first : first + nbytes])
    arena.lease(transfer)
    model.submitted(transfer, by, owner, owner.source.opened, [chunk], 0)
    _await(model, transfer, f"a read of {owner.name}")


@play.register
async def stale(move: Stale, model: Model) -> None:
    """Write with the descriptor of a region that is closed, and maybe registered again under another."""
    by = model.pick(move.by)
    retired = [(to, opened) for to, opened in model.retired if to is not by and to.state != "killed"]
    if by is None or not retired or not by.source.is_open:
        return
    to, opened = retired[move.which % len(retired)]
    nbytes = max(1, SIZES[move.size % len(SIZES)])
    first = _offset(move.at, nbytes)
    target = opened.remote[first : first + nbytes]
    transfer = by.engine.submit_write(_slice(by, move.at, nbytes), target, counter=to.tally.reference)
    by.source.lease(transfer)
    model.submitted(transfer, by, to, opened, [Chunk.never(opened.arena)], 1)
    _await(model, transfer, f"a stale write to {to.name}")


@play.register
async def turns_of_the_loop(move: Turns, model: Model) -> None:
    """Let everything move on."""
    await turns(move.count)
    model.check(f"within step {model.clock}, Turns")
