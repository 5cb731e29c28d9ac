"""Counts at the end of a random schedule: each chunk that came has one, and every wait ended as it had to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import anyio

from aio_transfer.errors import AioTransferError, ClosedError, PeerLostError, TransferAbortedError
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.fuzz.model.engine_model import around, blamed
from aio_transfer.testing.fuzz.model.tasks import join

if TYPE_CHECKING:
    from aio_transfer.testing.fuzz.model.counter_model import Tally, Waiting
    from aio_transfer.testing.fuzz.model.engine_model import Actor, Part
    from aio_transfer.testing.fuzz.model.tasks import Await
    from aio_transfer.testing.fuzz.model.world import Model

__all__ = ("end_counts",)


async def end_counts(model: Model) -> None:
    """Compare chunks, counters and waits with the model, once nothing moves any more.

    :raises ConformanceError: they differ
    """
    _judge_closed(model)
    counts = _settle_chunks(model)
    for actor in model.open_actors():
        await _end_tally(model, actor, *counts[actor.tally])


def _settle_chunks(model: Model) -> dict[Tally, tuple[int, int]]:
    """Demand that what ended well is there, and whole.

    :returns: how many counts each counter must have, and how many it may have
    """
    least: Counter[Tally] = Counter()
    most: Counter[Tally] = Counter()
    for part in model.parts:
        came = [chunk.settle(str(part)) for chunk in part.chunks]
        well = part.transfer.exception() is None or not _excuses(model, part)
        claim(
            not well or all(came), f"{part} ended well, and {came.count(False)} of its {len(came)} chunks are missing"
        )
        if part.tally is not None:
            least[part.tally] += part.counts if well else 0
            most[part.tally] += part.counts if well or not came else sum(came)
    return {tally: (least[tally], most[tally]) for tally in model.tallies}


async def _end_tally(model: Model, actor: Actor, least: int, most: int) -> None:
    """Demand that the counter shows each chunk that came once, and that every wait ended as it had to."""
    tally = actor.tally
    waits = [wait for wait in tally.waits if wait.is_queued]
    failed = [part for part in model.parts if part.tally is tally and _may_have_failed(model, part)]
    if any(_must_tell(model, part) for part in failed):
        # None of those who count on it may wait for ever, nor anybody who comes later.
        late = model.start(f"a wait of {tally} for what has failed", lambda: tally.counter.wait(most + 1))
        await join([late, *(wait.task for wait in waits)], model.deadline_s)
        claim(late.outcome == "failed", f"{late}, and only {most} counts could come")
        _judge_wait(model, actor, late, failed)
    elif not failed and not model.was_broken(actor):
        await _grant(model, tally, waits, least)
    for wait in waits:
        wait.task.cancel(as_task=False)
    await join((wait.task for wait in waits), model.deadline_s)
    for wait in tally.waits:
        _judge_wait(model, actor, wait.task, failed)
    await _take_rest(model, actor, least, failed)
    value = tally.counter.value
    claim(least <= value <= most, f"{value} counts at {tally}, and {least} … {most} are due (rule 3)")


def _may_have_failed(model: Model, part: Part) -> bool:
    return part.transfer.exception() is not None and bool(_excuses(model, part))


def _must_tell(model: Model, part: Part) -> bool:
    """Whether the receiver has to learn that a part failed.

    What was never posted, or after the goodbye, is known to nobody there; a killed sender may have died before it told
    what it promised. Of a scatter it is known only that some part failed: this one may have been among the unposted, as
    soon as a link of its own was broken.
    """
    broken = [trouble for trouble in around(part, model.troubles) if trouble.breaks_links]
    if part.transfer.operation == "scatter":
        return not broken and not all(chunk.is_visible for chunk in part.chunks)
    started = part.since - 1 if part.posted is None else part.posted
    if any(trouble.since <= started for trouble in broken) or (part.by.state == "killed" and not part.to.names_sources):
        return False
    return part.posted is not None or not isinstance(part.transfer.exception(), PeerLostError | TransferAbortedError)


def _judge_closed(model: Model) -> None:
    """Demand that who waited for a counter that was closed was told so, or before."""
    for tally in model.tallies:
        for wait in tally.waits if tally.closed else ():
            right = isinstance(wait.task.error, ClosedError | TransferAbortedError | PeerLostError | None)
            claim(right, f"{wait.task}, and its counter was closed")


async def _grant(model: Model, tally: Tally, waits: list[Waiting], due: int) -> None:
    """Demand that those who can be served are, in the order in which they queue, and nobody else."""
    left = due - tally.consumed
    served = []
    for wait in waits:
        left -= wait.count
        if left < 0:
            break
        served.append(wait.task)
    await join(served, model.deadline_s)
    early = [wait.task for wait in waits[len(served) :] if not wait.is_queued]
    claim(not early, f"{early} though only {due} counts were due (rule 5)")


def _judge_wait(model: Model, actor: Actor, task: Await, failed: list[Part]) -> None:
    error = task.error
    if error is None:
        claim(task.outcome != "cancelled" or task.asked, f"{task} by nobody")
        return
    excused = (isinstance(error, TransferAbortedError) and failed) or (
        isinstance(error, PeerLostError) and model.was_broken(actor)
    )
    claim(excused, f"{task}; no transfer to {actor.name} failed that excuses it")


async def _take_rest(model: Model, actor: Actor, least: int, failed: list[Part]) -> None:
    """Take what has come and nobody waited for; the word of a failure may overtake counts."""
    tally = actor.tally
    rest = least - tally.consumed
    if rest <= 0:
        return
    try:
        with anyio.fail_after(model.deadline_s):
            while True:
                tally.counter.clear()
                try:
                    await tally.counter.wait(rest)
                    break
                except (TransferAbortedError, PeerLostError):
                    claim(failed or model.was_broken(actor), f"a wait for counts that came to {tally} failed")
    except TimeoutError:
        raise ConformanceError(f"{tally.counter.value} counts at {tally}, {least} are due (rule 4)") from None
    tally.consumed += rest


def _excuses(model: Model, part: Part) -> set[type[AioTransferError]]:
    """Say why a part may have failed: what a scatter does with one peer fails or succeeds as one."""
    mates = [one for one in model.parts if one.transfer is part.transfer and one.to is part.to]
    return set().union(*(blamed(one, model.troubles) for one in mates))
