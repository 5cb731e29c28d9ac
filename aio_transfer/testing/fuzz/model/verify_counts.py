"""Final check of counts: each chunk that arrived has exactly one, and every wait ended as it had to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import anyio

from aio_transfer.errors import AioTransferError, ClosedError, PeerLostError, TransferAbortedError
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.fuzz.model.engine_model import allowed_errors, overlapping_disruptions
from aio_transfer.testing.fuzz.model.tasks import join

if TYPE_CHECKING:
    from aio_transfer.testing.fuzz.model.counter_model import CounterModel, QueuedWait
    from aio_transfer.testing.fuzz.model.engine_model import EngineModel, TransferPart
    from aio_transfer.testing.fuzz.model.tasks import TrackedTask
    from aio_transfer.testing.fuzz.model.world import World

__all__ = ("verify_counts",)


async def verify_counts(world: World) -> None:
    """Compare chunks, counters and waits with the model, once nothing is in flight.

    :raises ConformanceError: they differ
    """
    _verify_waits_on_closed(world)
    counts = _settle_chunks(world)
    for node in world.open_nodes():
        await _verify_counter(world, node, *counts[node.counter_model])


def _settle_chunks(world: World) -> dict[CounterModel, tuple[int, int]]:
    """Check that the chunks of every successful transfer arrived in full.

    :returns: how many counts each counter must have, and how many it may have
    """
    least: Counter[CounterModel] = Counter()
    most: Counter[CounterModel] = Counter()
    for part in world.parts:
        arrived = [chunk.settle(str(part)) for chunk in part.chunks]
        succeeded = part.transfer.exception() is None or not _allowed_errors(world, part)
        missing = f"{part} succeeded, and {arrived.count(False)} of its {len(arrived)} chunks are missing"
        claim(not succeeded or all(arrived), missing)
        if part.counter_model is not None:
            least[part.counter_model] += part.counts if succeeded else 0
            most[part.counter_model] += part.counts if succeeded or not arrived else sum(arrived)
    return {one: (least[one], most[one]) for one in world.counter_models}


async def _verify_counter(world: World, node: EngineModel, least: int, most: int) -> None:
    """Check that the counter has one count per chunk that arrived, and that every wait ended as it had to."""
    counter_model, counter = node.counter_model, node.counter_model.counter
    waits = [wait for wait in counter_model.waits if wait.is_queued]
    failed = [part for part in world.parts if part.counter_model is counter_model and _may_have_failed(world, part)]
    if any(_receiver_must_learn(world, part) for part in failed):
        # No wait for these counts may last for ever, nor may a later one.
        late = world.start_task(f"a wait of {counter_model} for failed counts", lambda: counter.wait(most + 1))
        await join([late, *(wait.task for wait in waits)], world.deadline_s)
        claim(late.outcome == "failed", f"{late}, and only {most} counts could arrive")
        _verify_wait(world, node, late, failed)
    elif not failed and not world.any_link_was_broken(node):
        await _verify_granted(world, counter_model, waits, least)
    for wait in waits:
        wait.task.cancel(as_task=False)
    await join((wait.task for wait in waits), world.deadline_s)
    for wait in counter_model.waits:
        _verify_wait(world, node, wait.task, failed)
    await _consume_rest(world, node, least, failed)
    value = counter.value
    claim(least <= value <= most, f"{value} counts at {counter_model}, and {least} … {most} are due (rule 3)")


def _may_have_failed(world: World, part: TransferPart) -> bool:
    return part.transfer.exception() is not None and bool(_allowed_errors(world, part))


def _receiver_must_learn(world: World, part: TransferPart) -> bool:
    """Return whether the receiver has to learn that a part failed.

    The receiver does not know of a part that was never posted, or was posted after a disconnect, and a killed sender
    may have died before it announced its counts. A scatter reports only that some part failed: once a link of this part
    was broken, it may be one that was never posted.
    """
    broken = [disruption for disruption in overlapping_disruptions(part, world.disruptions) if disruption.breaks_links]
    if part.transfer.operation == "scatter":
        return not broken and not all(chunk.is_visible for chunk in part.chunks)
    started = part.submitted - 1 if part.posted is None else part.posted
    if any(disruption.began <= started for disruption in broken):
        return False
    if part.by.state == "killed" and not part.to.names_sources:
        return False
    return part.posted is not None or not isinstance(part.transfer.exception(), PeerLostError | TransferAbortedError)


def _verify_waits_on_closed(world: World) -> None:
    """Check that every wait on a closed counter ended with ClosedError, or with an earlier error."""
    for counter_model in world.counter_models:
        for wait in counter_model.waits if counter_model.closed else ():
            right = isinstance(wait.task.error, ClosedError | TransferAbortedError | PeerLostError | None)
            claim(right, f"{wait.task}, and its counter was closed")


async def _verify_granted(world: World, counter_model: CounterModel, waits: list[QueuedWait], due: int) -> None:
    """Check that the waits whose counts are there are granted, in the order of their queue, and no others."""
    left = due - counter_model.consumed
    served = []
    for wait in waits:
        left -= wait.count
        if left < 0:
            break
        served.append(wait.task)
    await join(served, world.deadline_s)
    early = [wait.task for wait in waits[len(served) :] if not wait.is_queued]
    claim(not early, f"{early} though only {due} counts were due (rule 5)")


def _verify_wait(world: World, node: EngineModel, task: TrackedTask, failed: list[TransferPart]) -> None:
    error = task.error
    if error is None:
        claim(task.outcome != "cancelled" or task.cancel_requested, f"{task}, and nothing had cancelled it")
        return
    allowed = (isinstance(error, TransferAbortedError) and failed) or (
        isinstance(error, PeerLostError) and world.any_link_was_broken(node)
    )
    claim(allowed, f"{task}; no transfer to {node.name} failed with a reason for it")


async def _consume_rest(world: World, node: EngineModel, least: int, failed: list[TransferPart]) -> None:
    """Consume the counts that arrived and that no wait has taken; the news of a failure may overtake counts."""
    counter_model, counter = node.counter_model, node.counter_model.counter
    rest = least - counter_model.consumed
    if rest <= 0:
        return
    try:
        with anyio.fail_after(world.deadline_s):
            while True:
                counter.clear()
                try:
                    await counter.wait(rest)
                    break
                except (TransferAbortedError, PeerLostError):
                    may_fail = failed or world.any_link_was_broken(node)
                    claim(may_fail, f"a wait for counts that arrived at {counter_model} failed")
    except TimeoutError:
        raise ConformanceError(f"{counter.value} counts at {counter_model}, {least} are due (rule 4)") from None
    counter_model.consumed += rest


def _allowed_errors(world: World, part: TransferPart) -> set[type[AioTransferError]]:
    """Return why a part may have failed: the parts of a scatter at one peer fail or succeed together."""
    same_peer = [one for one in world.parts if one.transfer is part.transfer and one.to is part.to]
    return set().union(*(allowed_errors(one, world.disruptions) for one in same_peer))
