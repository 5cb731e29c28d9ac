"""Moves that wait: for counts, messages, barriers; and those that cancel whatever waits."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fuzz.model.counter_model import Waiting
from aio_transfer.testing.fuzz.model.tasks import turns
from aio_transfer.testing.fuzz.model.world import Letter, Model, play
from aio_transfer.testing.fuzz.operations.definitions import (
    SIZES,
    Cancel,
    Enter,
    Overwait,
    Receive,
    Recount,
    Send,
    Wait,
)

if TYPE_CHECKING:
    from aio_transfer.peers.messages import ReceivedMessage
    from aio_transfer.testing.fuzz.model.engine_model import Actor

__all__ = ("enter", "receive")

_TURNS_TO_PARK = 3
_NOISE = np.random.default_rng(7).bytes(max(SIZES))
_serials = itertools.count()


@play.register
async def wait(move: Wait, model: Model) -> None:
    """Wait for counts that are promised."""
    actor = model.pick(move.at)
    if actor is not None:
        await _wait(model, actor, move.count % (actor.tally.unclaimed + 1))


@play.register
async def overwait(move: Overwait, model: Model) -> None:
    """Wait for counts that nobody has promised yet."""
    actor = model.pick(move.at)
    if actor is not None:
        await _wait(model, actor, actor.tally.unclaimed + 1 + move.more % 3)


async def _wait(model: Model, actor: Actor, count: int) -> None:
    def granted() -> None:
        tally.consumed += count
        if not tally.closed:
            tally.check(f"when a wait for {count} returned in step {model.clock}")

    tally = actor.tally
    task = model.start(f"a wait of {tally} for {count} counts", lambda: tally.counter.wait(count), granted)
    if count:  # to wait for nothing is not to queue
        tally.waits.append(Waiting(count, task))
    await turns(_TURNS_TO_PARK)  # so that waits queue in the order of their moves


@play.register
async def recount(move: Recount, model: Model) -> None:
    """Close a counter while its counts may be on their way, and make another: none of them may show there."""
    actor = model.pick(move.at)
    if actor is not None:
        actor.tally.closed = True
        actor.tally.counter.close()
        actor.tally = model.mesh.tally(actor)
        model.tallies.append(actor.tally)


@play.register
async def cancel(move: Cancel, model: Model) -> None:
    """Cancel what waits, after some turns; or sooner, in the tick in which it would end."""
    there = [one for one in model.awaits if one.outcome == "waiting"]
    if not there:
        return
    one = there[move.which % len(there)]
    counts = [tally.counter for tally in model.tallies if any(wait.task is one for wait in tally.waits)]
    transfers = [part.transfer for part in model.parts if not part.transfer.done]
    waiting, moving = sum(counter.waiting for counter in counts), len(transfers)
    for _ in range(move.turns % 12):
        await turns(1)
        # Whoever waited has been woken and has not run yet.
        if sum(counter.waiting for counter in counts) < waiting:
            break
        if not counts and sum(not transfer.done for transfer in transfers) < moving:
            break
    one.cancel(as_task=bool(move.how % 2))


@play.register
async def enter_barrier(move: Enter, model: Model) -> None:
    """Enter the barrier of all, or go on with one that was cancelled."""
    actor = model.pick(move.by)
    if actor is not None and actor.group is not None:
        enter(model, actor)


def enter(model: Model, actor: Actor) -> None:
    """Let a member enter its next barrier, unless it waits in one."""
    group = actor.group
    if group is None or (actor.barrier is not None and actor.barrier.outcome == "waiting"):
        return

    def passed() -> None:
        actor.passed += 1
        late = [other.name for other in model.actors if other.entered < actor.passed]
        claim(not late, f"{actor.name} left barrier {actor.passed}; {late} had not entered (rule 10)")

    # A barrier that was cancelled is not entered again.
    actor.entered = actor.passed + 1
    actor.barrier = model.start(f"barrier {actor.entered} of {actor.name}", group.barrier, passed)


@play.register
async def send(move: Send, model: Model) -> None:
    """Send a message that is like no other."""
    two = model.pick_two(move.by, move.to)
    if two is None or not model.mesh.spec.messages:
        return
    by, to = two
    payload = next(_serials).to_bytes(8, "little") + _NOISE[: SIZES[move.size % len(SIZES)]]
    task = model.start(f"a message {by.name}→{to.name}", lambda: by.engine.send(to.engine.address, payload))
    model.letters[payload] = Letter(by, to, task, model.clock)


@play.register
async def receive_message(move: Receive, model: Model) -> None:
    """Wait for a message."""
    actor = model.pick(move.at)
    if actor is not None and model.mesh.spec.messages:
        receive(model, actor)


def receive(model: Model, actor: Actor) -> None:
    """Wait for a message, and look where it belongs."""

    async def take() -> None:
        async for message in actor.engine.messages():
            received.append(message)
            break

    def note() -> None:
        claim(received or actor.state != "open", f"the messages of {actor.name} ended, and it is open")
        for message in received:
            _note(model, actor, message)

    received: list[ReceivedMessage] = []
    model.receives.append((actor, model.start(f"a receive of {actor.name}", take, note)))


def _note(model: Model, actor: Actor, message: ReceivedMessage) -> None:
    letter = model.letters.get(message.payload)
    if letter is None:
        claim(
            message.payload in model.mesh.tardy,
            f"{actor.name} received {len(message.payload)} B that nobody sent it: {message.payload[:24]!r}",
        )
        model.mesh.tardy.discard(message.payload)
        return
    sender = letter.by.engine.address.incarnation
    right = letter.to is actor and message.peer.incarnation == sender and not letter.received
    again = "again" if letter.received else f"from {message.peer.label}"
    claim(right, f"{actor.name} received {again} what {letter.by.name} sent to {letter.to.name}")
    letter.received = True
