"""Moves that upset what is under way: closing regions and engines, goodbyes, deaths, and faults of the fabric."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aio_transfer.testing.fuzz.model.engine_model import Trouble
from aio_transfer.testing.fuzz.model.world import Model, play
from aio_transfer.testing.fuzz.operations.definitions import (
    CloseEngine,
    CloseSource,
    CloseTarget,
    Connect,
    Cut,
    Disconnect,
    DrainQueues,
    FailCompletions,
    FailPosts,
    FillQueues,
    Heal,
    Hold,
    Kill,
    Release,
    Reopen,
    Resume,
    Stall,
)

if TYPE_CHECKING:
    from aio_transfer.testing.fuzz.model.arena import Arena, Opened
    from aio_transfer.testing.fuzz.model.engine_model import Actor
    from aio_transfer.testing.fuzz.model.tasks import Await

__all__ = ("close_region", "restore_fabric")

_MOST_FAILURES = 3

# ------------------------------------------------------------------------------------------------------------- regions


@play.register
async def close_source(move: CloseSource, model: Model) -> None:
    """Take a source back, and change it."""
    actor = model.pick(move.of)
    if actor is not None and actor.source.is_open:
        close_region(model, actor, actor.source)


@play.register
async def close_target(move: CloseTarget, model: Model) -> None:
    """Take a target back: it is seen at the end whether anything wrote to it afterwards."""
    actor = model.pick(move.of)
    if actor is not None:
        arena = actor.targets[move.slot % len(actor.targets)]
        if arena.is_open:
            close_region(model, actor, arena)


def close_region(model: Model, actor: Actor, arena: Arena) -> Await:
    """Begin to close; once that has returned, the memory is its owner's alone."""

    def closed(opened: Opened) -> None:
        if opened.closed is None:
            model.retire(actor, opened)
            if arena is actor.source:
                arena.scribble()

    opened = arena.opened
    if opened.closing is None:
        opened.closing = model.clock
    return model.start(f"closing {opened.region.name} of {actor.name}", opened.region.aclose, partial(closed, opened))


@play.register
async def reopen(move: Reopen, model: Model) -> None:
    """Register again what is closed: the same bytes, and another region."""
    actor = model.pick(move.of)
    if actor is not None:
        for arena in actor.arenas:
            if arena.opened.closed is not None:
                await arena.open()


# --------------------------------------------------------------------------------------------------------------- peers


@play.register
async def connect(move: Connect, model: Model) -> None:
    """Connect two engines."""
    two = model.pick_two(move.by, move.to)
    if two is not None:
        by, to = two
        model.start(f"connecting {by.name}→{to.name}", lambda: by.engine.connect(to.engine.address))


@play.register
async def disconnect(move: Disconnect, model: Model) -> None:
    """Say goodbye: what is under way between the two may fail, and waits that depend on it do."""
    two = model.pick_two(move.by, move.to)
    if two is None:
        return
    by, to = two
    trouble = model.trouble(Trouble("disconnect", by, to, model.clock))
    model.start(
        f"disconnecting {by.name}→{to.name}",
        lambda: by.engine.disconnect(to.engine.address),
        lambda: model.parted(trouble),
    )


@play.register
async def close_engine(move: CloseEngine, model: Model) -> None:
    """Close an engine, unless it is the last."""
    actor = model.pick(move.which)
    if actor is not None and len(model.open_actors()) > 1:
        model.trouble(Trouble("close", actor, None, model.clock))
        actor.state = "closing"
        model.start(f"closing engine {actor.name}", actor.engine.aclose)


@play.register
async def kill(move: Kill, model: Model) -> None:
    """Kill an engine, unless it is the last."""
    actor = model.pick(move.which)
    if model.fabric is not None and actor is not None and len(model.open_actors()) > 1:
        model.trouble(Trouble("kill", actor, None, model.clock))
        actor.state = "killed"
        model.fabric.kill(actor.engine)


# -------------------------------------------------------------------------------------------------------------- fabric


@play.register
async def cut(move: Cut, model: Model) -> None:
    """Let the packets between two engines wait."""
    two = model.pick_two(move.one, move.other)
    if model.fabric is not None and two is not None:
        model.fabric.cut(two[0].engine, two[1].engine)


@play.register
async def heal(move: Heal, model: Model) -> None:
    """Let them go on."""
    two = model.pick_two(move.one, move.other)
    if model.fabric is not None and two is not None:
        model.fabric.heal(two[0].engine, two[1].engine)


@play.register
async def stall(move: Stall, model: Model) -> None:
    """Stop one NIC, or all of an engine's."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.stall(actor.engine, (None, *range(actor.nics))[move.nic % (actor.nics + 1)])


@play.register
async def resume(move: Resume, model: Model) -> None:
    """Let all NICs of an engine go on."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.resume(actor.engine)


@play.register
async def fail_posts(move: FailPosts, model: Model) -> None:
    """Fail the next posts of an engine."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.fail_posts(actor.engine, _arm(model, actor, move.count))


def _arm(model: Model, actor: Actor, count: int) -> int:
    model.trouble(Trouble("fault", actor, None, model.clock))
    number = 1 + count % _MOST_FAILURES
    model.armed += number
    return number


@play.register
async def fail_completions(move: FailCompletions, model: Model) -> None:
    """Fail the next pieces of an engine after half of their bytes."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.fail_completions(actor.engine, _arm(model, actor, move.count))


@play.register
async def fill_queues(move: FillQueues, model: Model) -> None:
    """Leave no room for posts."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.fill_queues(actor.engine)


@play.register
async def drain_queues(move: DrainQueues, model: Model) -> None:
    """Leave room again."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.drain_queues(actor.engine)


@play.register
async def hold(move: Hold, model: Model) -> None:
    """Report no completion."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.hold_completions(actor.engine)


@play.register
async def release(move: Release, model: Model) -> None:
    """Report all of them at once."""
    actor = model.pick(move.of)
    if model.fabric is not None and actor is not None:
        model.fabric.release_completions(actor.engine)


def restore_fabric(model: Model) -> None:
    """Undo whatever was done to the fabric, but for deaths."""
    fabric = model.fabric
    if fabric is None:
        return
    there = [actor for actor in model.actors if actor.state != "killed"]
    for index, actor in enumerate(there):
        fabric.resume(actor.engine)
        fabric.drain_queues(actor.engine)
        fabric.release_completions(actor.engine)
        for other in there[:index]:
            fabric.heal(actor.engine, other.engine)
