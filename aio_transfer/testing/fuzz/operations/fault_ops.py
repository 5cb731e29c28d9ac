"""Fault operations: closing regions and engines, disconnects, killed engines, and faults of the fabric."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aio_transfer.testing.fuzz.model.engine_model import Disruption
from aio_transfer.testing.fuzz.model.world import World, perform
from aio_transfer.testing.fuzz.operations.definitions import (
    CloseEngine,
    CloseSourceRegion,
    CloseTargetRegion,
    ConnectPeer,
    CutPath,
    DisconnectPeer,
    DrainQueues,
    FailCompletions,
    FailPosts,
    FillQueues,
    HealPath,
    HoldCompletions,
    KillEngine,
    ReleaseCompletions,
    ReopenRegions,
    ResumeNics,
    StallNics,
)

if TYPE_CHECKING:
    from aio_transfer.testing.fuzz.model.arena import Arena, Registration
    from aio_transfer.testing.fuzz.model.engine_model import EngineModel
    from aio_transfer.testing.fuzz.model.tasks import TrackedTask

__all__ = ("close_region", "restore_fabric")

_MOST_FAILURES = 3

# ------------------------------------------------------------------------------------------------------------- regions


@perform.register
async def close_source_region(operation: CloseSourceRegion, world: World) -> None:
    """Close a source, and overwrite it once it is closed."""
    node = world.pick_open(operation.of)
    if node is not None and node.source.is_open:
        close_region(world, node, node.source)


@perform.register
async def close_target_region(operation: CloseTargetRegion, world: World) -> None:
    """Close a target; the final check finds anything written to it afterwards."""
    node = world.pick_open(operation.of)
    if node is not None:
        arena = node.targets[operation.slot % len(node.targets)]
        if arena.is_open:
            close_region(world, node, arena)


def close_region(world: World, node: EngineModel, arena: Arena) -> TrackedTask:
    """Begin to close the region of an arena; once that has returned, no peer may access the memory."""

    def closed(registration: Registration) -> None:
        if registration.closed is None:
            world.on_region_closed(node, registration)
            if arena is node.source:
                arena.overwrite()

    registration = arena.registration
    if registration.closing is None:
        registration.closing = world.step
    region = registration.region
    return world.start_task(f"closing {region.name} of {node.name}", region.aclose, partial(closed, registration))


@perform.register
async def reopen_regions(operation: ReopenRegions, world: World) -> None:
    """Register closed arenas again: the same memory, and a new region."""
    node = world.pick_open(operation.of)
    if node is not None:
        for arena in node.arenas:
            if arena.registration.closed is not None:
                await arena.open()


# --------------------------------------------------------------------------------------------------------------- peers


@perform.register
async def connect_peer(operation: ConnectPeer, world: World) -> None:
    """Connect two engines."""
    pair = world.pick_pair(operation.by, operation.to)
    if pair is not None:
        by, to = pair
        world.start_task(f"connecting {by.name}→{to.name}", lambda: by.engine.connect(to.engine.address))


@perform.register
async def disconnect_peer(operation: DisconnectPeer, world: World) -> None:
    """Disconnect: transfers between the two may fail, and waits that depend on them do."""
    pair = world.pick_pair(operation.by, operation.to)
    if pair is None:
        return
    by, to = pair
    disruption = world.add_disruption(Disruption("disconnect", by, to, world.step))
    world.start_task(
        f"disconnecting {by.name}→{to.name}",
        lambda: by.engine.disconnect(to.engine.address),
        lambda: world.on_disconnected(disruption),
    )


@perform.register
async def close_engine(operation: CloseEngine, world: World) -> None:
    """Close an engine, unless it is the last."""
    node = world.pick_open(operation.which)
    if node is not None and len(world.open_nodes()) > 1:
        world.add_disruption(Disruption("close", node, None, world.step))
        node.state = "closing"
        world.start_task(f"closing engine {node.name}", node.engine.aclose)


@perform.register
async def kill_engine(operation: KillEngine, world: World) -> None:
    """Kill an engine, unless it is the last."""
    node = world.pick_open(operation.which)
    if world.fabric is not None and node is not None and len(world.open_nodes()) > 1:
        world.add_disruption(Disruption("kill", node, None, world.step))
        node.state = "killed"
        world.fabric.kill(node.engine)


# -------------------------------------------------------------------------------------------------------------- fabric


@perform.register
async def cut_path(operation: CutPath, world: World) -> None:
    """Hold the packets between two engines."""
    pair = world.pick_pair(operation.one, operation.other)
    if world.fabric is not None and pair is not None:
        world.fabric.cut(pair[0].engine, pair[1].engine)


@perform.register
async def heal_path(operation: HealPath, world: World) -> None:
    """Let the packets between two engines through again."""
    pair = world.pick_pair(operation.one, operation.other)
    if world.fabric is not None and pair is not None:
        world.fabric.heal(pair[0].engine, pair[1].engine)


@perform.register
async def stall_nics(operation: StallNics, world: World) -> None:
    """Stop one NIC of an engine, or all."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.stall(node.engine, (None, *range(node.nics))[operation.nic % (node.nics + 1)])


@perform.register
async def resume_nics(operation: ResumeNics, world: World) -> None:
    """Restart all NICs of an engine."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.resume(node.engine)


@perform.register
async def fail_posts(operation: FailPosts, world: World) -> None:
    """Fail the next posts of an engine."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.fail_posts(node.engine, _command_failures(world, node, operation.count))


def _command_failures(world: World, node: EngineModel, count: int) -> int:
    world.add_disruption(Disruption("fault", node, None, world.step))
    number = 1 + count % _MOST_FAILURES
    world.commanded_failures += number
    return number


@perform.register
async def fail_completions(operation: FailCompletions, world: World) -> None:
    """Fail the next pieces of an engine after half of their bytes."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.fail_completions(node.engine, _command_failures(world, node, operation.count))


@perform.register
async def fill_queues(operation: FillQueues, world: World) -> None:
    """Make every post of an engine find its queue full."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.fill_queues(node.engine)


@perform.register
async def drain_queues(operation: DrainQueues, world: World) -> None:
    """Let posts of an engine find room again."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.drain_queues(node.engine)


@perform.register
async def hold_completions(operation: HoldCompletions, world: World) -> None:
    """Hold back the completions of an engine."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.hold_completions(node.engine)


@perform.register
async def release_completions(operation: ReleaseCompletions, world: World) -> None:
    """Report all completions that were held back, at once."""
    node = world.pick_open(operation.of)
    if world.fabric is not None and node is not None:
        world.fabric.release_completions(node.engine)


def restore_fabric(world: World) -> None:
    """Undo every fault of the fabric; killed engines stay so."""
    fabric = world.fabric
    if fabric is None:
        return
    there = [node for node in world.nodes if node.state != "killed"]
    for index, node in enumerate(there):
        fabric.resume(node.engine)
        fabric.drain_queues(node.engine)
        fabric.release_completions(node.engine)
        for other in there[:index]:
            fabric.heal(node.engine, other.engine)
