"""Quiescence: the end of a schedule, where everything ends and is compared with the model."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aio_transfer.errors import AioTransferError, ClosedError, PeerLostError, ProviderError, TransferAbortedError
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.fixtures import ping, until
from aio_transfer.testing.fuzz.model.engine_model import allowed_errors
from aio_transfer.testing.fuzz.model.tasks import join
from aio_transfer.testing.fuzz.model.verify_counts import verify_counts
from aio_transfer.testing.fuzz.operations.fault_ops import close_region, restore_fabric
from aio_transfer.testing.fuzz.operations.wait_ops import enter_next_barrier, start_receive

if TYPE_CHECKING:
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.fuzz.model.engine_model import EngineModel
    from aio_transfer.testing.fuzz.model.tasks import TrackedTask
    from aio_transfer.testing.fuzz.model.world import SentMessage, World

__all__ = ("quiesce",)


async def quiesce(world: World) -> None:
    """Let everything end, and compare all of it with the model.

    :raises ConformanceError: something does not end, or not as the contract allows
    """
    world.step += 1
    restore_fabric(world)
    for node in world.nodes:
        if node.state != "open":
            world.start_task(f"closing engine {node.name}", node.engine.aclose)
        for arena in node.arenas if node.state == "open" else ():
            if arena.registration.closing is not None and arena.registration.closed is None:
                close_region(world, node, arena)
    await _stop_transfers(world)
    _verify_transfers(world)
    await _finish_barriers(world)
    await join(_self_ending_tasks(world), world.deadline_s)
    await _finish_disconnects(world)
    await _finish_messages(world)
    await _drain_network(world)
    await verify_counts(world)
    world.check("at the end")
    await _verify_memory(world)


def _self_ending_tasks(world: World) -> list[TrackedTask]:
    """Return the tasks that must end by themselves: all but the waits for counts and messages on open engines."""
    there = world.open_nodes()
    endless = {wait.task for node in there for wait in node.counter_model.waits}
    endless |= {task for node, task in world.receive_tasks if node in there}
    return [one for one in world.tasks if one not in endless]


async def _finish_disconnects(world: World) -> None:
    """Let every disconnect end, and check that the two engines can connect again.

    The other side may see the end of a connection after the call has returned, and the next schedule must not see it.
    """
    for disruption in world.disruptions:
        one, other = disruption.one, disruption.other
        if other is None or one.state != "open":
            continue
        names = f"{one.name}→{other.name}"
        if disruption.ended is None:  # the await was cancelled, and the disconnect goes on
            task = world.start_task(f"finishing the disconnect of {names}", partial(_disconnect, one, other))
            await join([task], world.deadline_s)
        if other.state == "open":
            task = world.start_task(f"reconnecting {names}", partial(_reconnect, one, other))
            await join([task], world.deadline_s)


async def _disconnect(one: EngineModel, other: EngineModel) -> None:
    await one.engine.disconnect(other.engine.address)


async def _reconnect(one: EngineModel, other: EngineModel) -> None:
    while True:
        try:
            await one.engine.connect(other.engine.address)
        except PeerLostError:
            await anyio.lowlevel.checkpoint()  # lost with the connection that is still ending
        else:
            return


# ---------------------------------------------------------------------------------------------------------- transfers


async def _stop_transfers(world: World) -> None:
    late = [part for part in world.parts if not part.transfer.done]
    if not late:
        return
    with anyio.move_on_after(world.deadline_s):
        for part in late:
            try:
                await part.transfer.wait()
            except AioTransferError:
                continue  # _verify_transfers checks it
    stuck = [str(part) for part in late if not part.transfer.done]
    claim(not stuck, f"not stopped after {world.deadline_s:g} s: {', '.join(stuck)} (rule 8)")


def _verify_transfers(world: World) -> None:
    """Check that every transfer succeeded, or failed with an error that a disruption explains."""
    world.check("when all transfers had stopped")
    failures = 0
    for part in world.parts:
        error = part.transfer.exception()
        if error is None:
            stale = part.is_stale and part.has_work
            claim(not stale, f"{part} to a region that was closed before succeeded (rule 9)")
            continue
        parts = [one for one in world.parts if one.transfer is part.transfer]  # a scatter has several
        allowed = set().union(*(allowed_errors(one, world.disruptions) for one in parts))
        if type(error) not in allowed:
            wanted = " or ".join(sorted(kind.__name__ for kind in allowed)) or "no error"
            raise ConformanceError(f"{part} failed with {error!r}; {wanted} was allowed")
        failures += parts[0] is part and isinstance(error, ProviderError)
    commanded = world.commanded_failures
    claim(failures <= commanded, f"{failures} transfers failed, and the fabric was commanded to fail {commanded}")


# ----------------------------------------------------------------------------------------------------------- barriers


async def _finish_barriers(world: World) -> None:
    """Bring all members to the same epoch; where that may be impossible, check that none waits for ever."""
    members = [node for node in world.open_nodes() if node.group is not None]
    last = max((node.entered for node in members), default=0)
    while members and any(node.passed < last for node in members):
        barriers = []
        for node in members:
            if node.passed < last:
                enter_next_barrier(world, node)
                barriers += [node.barrier] if node.barrier is not None else []
        await _wait_for_any(world, barriers)
        for node in tuple(members):
            barrier = node.barrier
            if barrier is not None and barrier.outcome == "failed":
                _verify_barrier_error(world, node, barrier.error)
                members.remove(node)
                if node.group is not None:  # the others must learn that this member has failed
                    node.group.close()
    for node in members:
        epoch = node.group.epoch if node.group is not None else last
        claim(epoch == node.passed, f"{node.name} left {node.passed} barriers, and its group says {epoch} (rule 10)")
    if world.barriers_may_fail:
        world.mesh.leave_group()


async def _wait_for_any(world: World, barriers: list[TrackedTask]) -> None:
    """Wait until one of the barriers has ended."""
    with anyio.move_on_after(world.deadline_s):
        while all(one.outcome == "waiting" for one in barriers):
            await anyio.lowlevel.checkpoint()
        return
    raise ConformanceError(f"not ended after {world.deadline_s:g} s: {', '.join(map(repr, barriers))} (rule 10)")


def _verify_barrier_error(world: World, node: EngineModel, error: AioTransferError | None) -> None:
    right = isinstance(error, PeerLostError | TransferAbortedError)
    claim(right and world.barriers_may_fail, f"barrier {node.entered} of {node.name} failed with {error!r}")


# ----------------------------------------------------------------------------------------------------------- messages


async def _finish_messages(world: World) -> None:
    """Receive every message that must arrive, and check that each arrived once."""
    for node in world.open_nodes():
        await _receive_due_messages(world, node)
    for payload, sent_message in world.sent_messages.items():
        if sent_message.received:
            continue
        name = f"{sent_message.task.what} of {len(payload)} B"
        error = sent_message.task.error
        if error is not None:
            right = isinstance(error, PeerLostError | TransferAbortedError | ProviderError | ClosedError)
            claim(right and _may_fail(world, sent_message), f"{name} failed with {error!r}")
        if sent_message.to.state == "open":
            must = sent_message.task.outcome == "returned" and not _may_fail(world, sent_message)
            claim(not must, f"{name} was not received")
            world.mesh.late_messages.add(payload)


def _may_fail(world: World, sent_message: SentMessage) -> bool:
    return any(disruption.affects(sent_message.by, sent_message.to) for disruption in world.disruptions)


async def _receive_due_messages(world: World, node: EngineModel) -> None:
    with anyio.move_on_after(world.deadline_s) if world.sent_messages else contextlib.nullcontext():
        while any(_is_due(world, sent_message, node) for sent_message in world.sent_messages.values()):
            if not any(one is node and task.outcome == "waiting" for one, task in world.receive_tasks):
                start_receive(world, node)
            await anyio.lowlevel.checkpoint()
    tasks = [task for one, task in world.receive_tasks if one is node]
    for task in tasks:
        task.cancel(as_task=False)
    await join(tasks, world.deadline_s)


def _is_due(world: World, sent_message: SentMessage, node: EngineModel) -> bool:
    is_missing = sent_message.task.outcome == "returned" and not sent_message.received and sent_message.to is node
    return is_missing and not _may_fail(world, sent_message)


# ------------------------------------------------------------------------------------------------------------- at rest


async def _drain_network(world: World) -> None:
    """Wait until everything that was sent has arrived, also what should not have been sent."""
    fabric = world.fabric
    if fabric is not None:
        if not fabric.in_flight:
            return
        with anyio.move_on_after(world.deadline_s):
            while fabric.in_flight:
                await anyio.lowlevel.checkpoint()
            return
        raise ConformanceError(
            f"{fabric.in_flight} packets are in flight after {world.deadline_s:g} s, and none is held"
        )
    for one, other in {tuple(sorted((part.by, part.to), key=lambda node: node.index)) for part in world.parts}:
        if one.state == other.state == "open":
            await ping(one.engine, other.engine)


async def _verify_memory(world: World) -> None:
    """Verify every arena that was used, and all arenas of one engine per schedule."""
    other = world.mesh.schedule_number % len(world.nodes)
    for node in world.nodes:
        for arena in node.arenas:
            if arena.touched or node.index == other:
                arena.verify("at the end")
    for node in world.open_nodes():
        await _wait_for_idle(node.engine)


async def _wait_for_idle(engine: TransferEngine) -> None:
    """Wait for the transfers of barriers, which no task awaits."""
    if engine.statistics().transfers_in_flight:
        await until(
            lambda: not engine.statistics().transfers_in_flight, f"{engine!r} has transfers under way that do not end"
        )
