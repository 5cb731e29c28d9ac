"""The end of a random schedule: everything that was begun ends, and what is there is what the model says."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aio_transfer.errors import AioTransferError, ClosedError, PeerLostError, ProviderError, TransferAbortedError
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.fixtures import ping, until
from aio_transfer.testing.fuzz.model.engine_model import blamed
from aio_transfer.testing.fuzz.model.tasks import join
from aio_transfer.testing.fuzz.model.verify_counts import end_counts
from aio_transfer.testing.fuzz.operations.fault_ops import close_region, restore_fabric
from aio_transfer.testing.fuzz.operations.wait_ops import enter, receive

if TYPE_CHECKING:
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.fuzz.model.engine_model import Actor
    from aio_transfer.testing.fuzz.model.tasks import Await
    from aio_transfer.testing.fuzz.model.world import Letter, Model

__all__ = ("settle",)


async def settle(model: Model) -> None:
    """Let everything come to its end, and compare all of it with the model.

    :raises ConformanceError: something does not end, or ends otherwise than it may
    """
    model.clock += 1
    restore_fabric(model)
    for actor in model.actors:
        if actor.state != "open":
            model.start(f"closing engine {actor.name}", actor.engine.aclose)
        for arena in actor.arenas if actor.state == "open" else ():
            if arena.opened.closing is not None and arena.opened.closed is None:
                close_region(model, actor, arena)
    await _stop_transfers(model)
    _judge(model)
    await _end_barriers(model)
    await join(_impatient(model), model.deadline_s)
    await _end_goodbyes(model)
    await _end_messages(model)
    await _quiet(model)
    await end_counts(model)
    model.check("at the end")
    await _verify(model)


def _impatient(model: Model) -> list[Await]:
    """Return what ends by itself: neither a wait for counts nor one for messages, but of engines that are gone."""
    there = model.open_actors()
    patient = {wait.task for actor in there for wait in actor.tally.waits}
    patient |= {task for actor, task in model.receives if actor in there}
    return [one for one in model.awaits if one not in patient]


async def _end_goodbyes(model: Model) -> None:
    """Bring goodbyes to their end, and demand that who said one can meet again.

    The other side may see the end of a connection after the call has returned, and the next schedule must not.
    """
    for trouble in model.troubles:
        one, other = trouble.one, trouble.other
        if other is None or one.state != "open":
            continue
        if trouble.until is None:  # the await was cancelled, and the goodbye goes on
            await join([model.start(f"parting {one.name}→{other.name}", partial(_part, one, other))], model.deadline_s)
        if other.state == "open":
            await join([model.start(f"meeting {one.name}→{other.name}", partial(_meet, one, other))], model.deadline_s)


async def _part(one: Actor, other: Actor) -> None:
    await one.engine.disconnect(other.engine.address)


async def _meet(one: Actor, other: Actor) -> None:
    while True:
        try:
            await one.engine.connect(other.engine.address)
        except PeerLostError:
            await anyio.lowlevel.checkpoint()  # by what is still ending
        else:
            return


# ---------------------------------------------------------------------------------------------------------- transfers


async def _stop_transfers(model: Model) -> None:
    late = [part for part in model.parts if not part.transfer.done]
    if not late:
        return
    with anyio.move_on_after(model.deadline_s):
        for part in late:
            try:
                await part.transfer.wait()
            except AioTransferError:
                continue  # judged below
    stuck = [str(part) for part in late if not part.transfer.done]
    claim(not stuck, f"not stopped after {model.deadline_s:g} s: {', '.join(stuck)} (rule 8)")


def _judge(model: Model) -> None:
    """Demand that every transfer ended well, or failed for something that happened, with the error for it."""
    model.check("when all transfers had stopped")
    failures = 0
    for part in model.parts:
        error = part.transfer.exception()
        if error is None:
            claim(not part.is_stale or not part.moves, f"{part} to a region that was closed before ended well (rule 9)")
            continue
        mates = [one for one in model.parts if one.transfer is part.transfer]  # of a scatter
        due = set().union(*(blamed(one, model.troubles) for one in mates))
        if type(error) not in due:
            wanted = " or ".join(sorted(kind.__name__ for kind in due)) or "nothing happened that concerns it"
            raise ConformanceError(f"{part} failed with {error!r}; {wanted}")
        failures += mates[0] is part and isinstance(error, ProviderError)
    claim(failures <= model.armed, f"{failures} transfers failed, and the fabric was to fail {model.armed}")


# ----------------------------------------------------------------------------------------------------------- barriers


async def _end_barriers(model: Model) -> None:
    """Bring all members to the same epoch; where that may be impossible, demand that nobody waits for ever."""
    members = [actor for actor in model.open_actors() if actor.group is not None]
    last = max((actor.entered for actor in members), default=0)
    while members and any(actor.passed < last for actor in members):
        barriers = []
        for actor in members:
            if actor.passed < last:
                enter(model, actor)
                barriers += [actor.barrier] if actor.barrier is not None else []
        await _first(model, barriers)
        for actor in tuple(members):
            barrier = actor.barrier
            if barrier is not None and barrier.outcome == "failed":
                _judge_barrier(model, actor, barrier.error)
                members.remove(actor)
                if actor.group is not None:  # who cannot go on must let others know
                    actor.group.close()
    for actor in members:
        epoch = actor.group.epoch if actor.group is not None else last
        claim(epoch == actor.passed, f"{actor.name} left {actor.passed} barriers, and its group says {epoch} (rule 10)")
    if model.spoiled:
        model.mesh.ungroup()


async def _first(model: Model, barriers: list[Await]) -> None:
    """Wait until one of them has ended."""
    with anyio.move_on_after(model.deadline_s):
        while all(one.outcome == "waiting" for one in barriers):
            await anyio.lowlevel.checkpoint()
        return
    raise ConformanceError(f"not ended after {model.deadline_s:g} s: {', '.join(map(repr, barriers))} (rule 10)")


def _judge_barrier(model: Model, actor: Actor, error: AioTransferError | None) -> None:
    right = isinstance(error, PeerLostError | TransferAbortedError)
    claim(right and model.spoiled, f"barrier {actor.entered} of {actor.name} failed with {error!r}")


# ----------------------------------------------------------------------------------------------------------- messages


async def _end_messages(model: Model) -> None:
    """Take every message that must come, and see that each came once."""
    for actor in model.open_actors():
        await _take_messages(model, actor)
    for payload, letter in model.letters.items():
        if letter.received:
            continue
        name = f"{letter.task.what} of {len(payload)} B"
        error = letter.task.error
        if error is not None:
            right = isinstance(error, PeerLostError | TransferAbortedError | ProviderError | ClosedError)
            claim(right and _may_fail(model, letter), f"{name} failed with {error!r}")
        if letter.to.state == "open":
            must = letter.task.outcome == "returned" and not _may_fail(model, letter)
            claim(not must, f"{name} was not received")
            model.mesh.tardy.add(payload)


def _may_fail(model: Model, letter: Letter) -> bool:
    return any(trouble.concerns(letter.by, letter.to) for trouble in model.troubles)


async def _take_messages(model: Model, actor: Actor) -> None:
    with anyio.move_on_after(model.deadline_s) if model.letters else contextlib.nullcontext():
        while any(_is_due(model, letter, actor) for letter in model.letters.values()):
            if not any(one is actor and task.outcome == "waiting" for one, task in model.receives):
                receive(model, actor)
            await anyio.lowlevel.checkpoint()
    tasks = [task for one, task in model.receives if one is actor]
    for task in tasks:
        task.cancel(as_task=False)
    await join(tasks, model.deadline_s)


def _is_due(model: Model, letter: Letter, actor: Actor) -> bool:
    sent = letter.task.outcome == "returned" and not letter.received and letter.to is actor
    return sent and not _may_fail(model, letter)


# ------------------------------------------------------------------------------------------------------------- at rest


async def _quiet(model: Model) -> None:
    """Give everything that was sent every chance to come, also what was not to be sent."""
    fabric = model.fabric
    if fabric is not None:
        if not fabric.in_flight:
            return
        with anyio.move_on_after(model.deadline_s):
            while fabric.in_flight:
                await anyio.lowlevel.checkpoint()
            return
        raise ConformanceError(
            f"{fabric.in_flight} packets are in flight after {model.deadline_s:g} s, and none is held"
        )
    for one, other in {tuple(sorted((part.by, part.to), key=lambda actor: actor.index)) for part in model.parts}:
        if one.state == other.state == "open":
            await ping(one.engine, other.engine)


async def _verify(model: Model) -> None:
    """Compare the memory that anything was to happen to, and some that nothing was."""
    other = model.mesh.turn % len(model.actors)
    for actor in model.actors:
        for arena in actor.arenas:
            if arena.touched or actor.index == other:
                arena.verify("at the end")
    for actor in model.open_actors():
        await _idle(actor.engine)


async def _idle(engine: TransferEngine) -> None:
    """Wait for the transfers of barriers, which nobody awaits."""
    if engine.statistics().transfers_in_flight:
        await until(
            lambda: not engine.statistics().transfers_in_flight, f"{engine!r} has transfers under way that do not end"
        )
