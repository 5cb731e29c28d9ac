"""Wait operations: waits for counts, messages and barriers, and the cancellation of any await."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fixtures import turns
from aio_transfer.testing.fuzz.model.counter_model import QueuedWait
from aio_transfer.testing.fuzz.model.world import SentMessage, World, perform
from aio_transfer.testing.fuzz.operations.definitions import (
    SIZES,
    CancelTask,
    EnterBarrier,
    ReceiveMessage,
    ReplaceCounter,
    SendMessage,
    WaitForCounts,
    WaitForUnpromised,
)

if TYPE_CHECKING:
    from aio_transfer.peers.messages import ReceivedMessage
    from aio_transfer.testing.fuzz.model.engine_model import EngineModel

__all__ = ("enter_next_barrier", "start_receive")

_TURNS_TO_PARK = 3
_NOISE = np.random.default_rng(7).bytes(max(SIZES))
_serials = itertools.count()


@perform.register
async def wait_for_counts(operation: WaitForCounts, world: World) -> None:
    """Wait for counts that are promised."""
    node = world.pick_open(operation.at)
    if node is not None:
        await _wait(world, node, operation.count % (node.counter_model.unclaimed + 1))


@perform.register
async def wait_for_unpromised(operation: WaitForUnpromised, world: World) -> None:
    """Wait for more counts than are promised."""
    node = world.pick_open(operation.at)
    if node is not None:
        await _wait(world, node, node.counter_model.unclaimed + 1 + operation.more % 3)


async def _wait(world: World, node: EngineModel, count: int) -> None:
    def granted() -> None:
        counter_model.consumed += count
        if not counter_model.closed:
            counter_model.check(f"when a wait for {count} returned in step {world.step}")

    counter_model = node.counter_model
    what = f"a wait of {counter_model} for {count} counts"
    task = world.start_task(what, lambda: counter_model.counter.wait(count), granted)
    if count:  # a wait for zero counts is not queued
        counter_model.waits.append(QueuedWait(count, task))
    await turns(_TURNS_TO_PARK)  # so that waits are queued in the order of their operations


@perform.register
async def replace_counter(operation: ReplaceCounter, world: World) -> None:
    """Close a counter while counts may be in flight, and open another, which must not receive any of them."""
    node = world.pick_open(operation.at)
    if node is not None:
        node.counter_model.closed = True
        node.counter_model.counter.close()
        node.counter_model = world.mesh.open_counter(node)
        world.counter_models.append(node.counter_model)


@perform.register
async def cancel_task(operation: CancelTask, world: World) -> None:
    """Cancel a waiting task after some turns of the event loop, or sooner, in the turn in which it would end."""
    candidates = [task for task in world.tasks if task.outcome == "waiting"]
    if not candidates:
        return
    chosen = candidates[operation.which % len(candidates)]
    counters = [one.counter for one in world.counter_models if any(wait.task is chosen for wait in one.waits)]
    transfers = [part.transfer for part in world.parts if not part.transfer.done]
    waiting, moving = sum(counter.waiting for counter in counters), len(transfers)
    for _ in range(operation.turns % 12):
        await turns(1)
        # A waiter has been woken, and has not run yet.
        if sum(counter.waiting for counter in counters) < waiting:
            break
        if not counters and sum(not transfer.done for transfer in transfers) < moving:
            break
    chosen.cancel(as_task=bool(operation.how % 2))


@perform.register
async def enter_barrier(operation: EnterBarrier, world: World) -> None:
    """Enter the barrier of the group of all engines, or continue one that was cancelled."""
    node = world.pick_open(operation.by)
    if node is not None and node.group is not None:
        enter_next_barrier(world, node)


def enter_next_barrier(world: World, node: EngineModel) -> None:
    """Let a member enter its next barrier, unless it waits in one."""
    group = node.group
    if group is None or (node.barrier is not None and node.barrier.outcome == "waiting"):
        return

    def passed() -> None:
        node.passed += 1
        late = [other.name for other in world.nodes if other.entered < node.passed]
        claim(not late, f"{node.name} left barrier {node.passed}; {late} had not entered (rule 10)")

    # After a cancelled barrier the member is still in it: the next call continues the same epoch.
    node.entered = node.passed + 1
    node.barrier = world.start_task(f"barrier {node.entered} of {node.name}", group.barrier, passed)


@perform.register
async def send_message(operation: SendMessage, world: World) -> None:
    """Send a message with a payload that no other message has."""
    pair = world.pick_pair(operation.by, operation.to)
    if pair is None or not world.mesh.spec.messages:
        return
    by, to = pair
    payload = next(_serials).to_bytes(8, "little") + _NOISE[: SIZES[operation.size % len(SIZES)]]
    task = world.start_task(f"a message {by.name}→{to.name}", lambda: by.engine.send(to.engine.address, payload))
    world.sent_messages[payload] = SentMessage(by, to, task)


@perform.register
async def receive_message(operation: ReceiveMessage, world: World) -> None:
    """Begin to wait for a message."""
    node = world.pick_open(operation.at)
    if node is not None and world.mesh.spec.messages:
        start_receive(world, node)


def start_receive(world: World, node: EngineModel) -> None:
    """Begin to wait for a message, and check it against the messages that were sent."""

    async def take() -> None:
        async for message in node.engine.messages():
            received.append(message)
            break

    def note() -> None:
        claim(received or node.state != "open", f"the messages of {node.name} ended, and it is open")
        for message in received:
            _record_received(world, node, message)

    received: list[ReceivedMessage] = []
    world.receive_tasks.append((node, world.start_task(f"a receive of {node.name}", take, note)))


def _record_received(world: World, node: EngineModel, message: ReceivedMessage) -> None:
    sent_message = world.sent_messages.get(message.payload)
    if sent_message is None:
        claim(
            message.payload in world.mesh.late_messages,
            f"{node.name} received {len(message.payload)} B that no engine sent it: {message.payload[:24]!r}",
        )
        world.mesh.late_messages.discard(message.payload)
        return
    sender = sent_message.by.engine.address.incarnation
    right = sent_message.to is node and message.peer.incarnation == sender and not sent_message.received
    again = "again" if sent_message.received else f"from {message.peer.label}"
    claim(right, f"{node.name} received {again} what {sent_message.by.name} sent to {sent_message.to.name}")
    sent_message.received = True
