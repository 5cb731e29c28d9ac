"""World of a running schedule: its engines, what was started, and the invariants checked after every operation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

import anyio.lowlevel

from aio_transfer.errors import ProviderError, StaleRegionError
from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fuzz.model.engine_model import Disruption, TransferPart
from aio_transfer.testing.fuzz.model.tasks import TrackedTask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from aio_transfer.testing.fuzz.mesh import Mesh
    from aio_transfer.testing.fuzz.model.arena import Registration
    from aio_transfer.testing.fuzz.model.counter_model import CounterModel
    from aio_transfer.testing.fuzz.model.engine_model import EngineModel
    from aio_transfer.testing.fuzz.operations.definitions import Operation

__all__ = ("SentMessage", "World", "perform")


@singledispatch
async def perform(operation: Operation, world: World) -> None:
    """Perform an operation; the modules beside its definition register a function per kind."""
    raise NotImplementedError(f"{operation!r} on {world!r}")


@dataclass(slots=True, eq=False)
class SentMessage:
    """A message that was sent; no two have the same payload."""

    by: EngineModel
    to: EngineModel
    task: TrackedTask
    received: bool = False


class World:
    """State of one schedule on a mesh.

    :ivar step: how many operations were performed
    :ivar parts: every transfer that was submitted, per peer
    :ivar tasks: everything that was awaited
    :ivar disruptions: everything that may fail transfers and waits
    :ivar barriers_may_fail: something happened that may fail the barriers of the group
    :ivar closed_registrations: regions that their owner has closed
    :ivar deadline_s: a wait that should have ended and has not after this time breaks rule 8
    :ivar counter_models: all counters, also those that were closed
    :ivar commanded_failures: how many failures the fabric was commanded to make
    """

    def __init__(self, mesh: Mesh, task_group: TaskGroup) -> None:
        """Begin a schedule.

        :param task_group: runs everything that is awaited
        """
        self.mesh = mesh
        self.fabric = mesh.fabric
        self.nodes = tuple(mesh.nodes)
        self.deadline_s = mesh.deadline_s
        self.step = 0
        self.parts: list[TransferPart] = []
        self.tasks: list[TrackedTask] = []
        self.disruptions: list[Disruption] = []
        self.counter_models: list[CounterModel] = [node.counter_model for node in mesh.nodes]
        self.receive_tasks: list[tuple[EngineModel, TrackedTask]] = []
        self.sent_messages: dict[bytes, SentMessage] = {}
        self.closed_registrations: list[tuple[EngineModel, Registration]] = []
        self.barriers_may_fail = False
        self.commanded_failures = 0
        self._task_group = task_group

    async def apply(self, operation: Operation) -> None:
        """Perform one operation, and check the invariants.

        :raises ConformanceError: one does not hold
        """
        self.step += 1
        await perform(operation, self)
        await anyio.lowlevel.checkpoint()
        self.check(f"after step {self.step}, {type(operation).__name__}")

    def clear(self) -> None:
        """Break the reference cycles: collecting the garbage of a hundred schedules takes as long as ten schedules."""
        for known in (
            self.parts,
            self.tasks,
            self.counter_models,
            self.receive_tasks,
            self.sent_messages,
            self.closed_registrations,
            self.disruptions,
        ):
            known.clear()

    def check(self, when: str) -> None:
        """Check the invariants, which hold at every moment."""
        for part in self.parts:
            if part.posted is None and part.transfer.path is not None:
                part.posted = self.step
            if part.stopped is None and part.transfer.done:
                self._on_stopped(part)
        for node in self.nodes:
            if node.state == "open":
                node.counter_model.check(when)
                if len(node.counter_model.waits) > 1:
                    node.counter_model.check_order(when)
                for arena in node.arenas:
                    arena.check_leases(when)

    def _on_stopped(self, part: TransferPart) -> None:
        """Note that a transfer has stopped: an error is raised only once none of its pieces moves (rule 6).

        Where a link broke, the reported error is the first of several: pieces may land until the fence.
        """
        part.stopped = self.step
        failed = isinstance(part.transfer.exception(), ProviderError | StaleRegionError)
        if failed and not self.link_was_broken(part.by, part.to):
            for chunk in part.chunks:
                chunk.settle(str(part))

    # ------------------------------------------------------------------------------------------------------ selection

    def open_nodes(self) -> list[EngineModel]:
        """Return the engines that can be used."""
        return [node for node in self.nodes if node.state == "open"]

    def pick_open(self, index: int) -> EngineModel | None:
        """Return the open engine that a number of an operation selects now."""
        there = self.open_nodes()
        return there[index % len(there)] if there else None

    def pick_pair(self, by: int, to: int) -> tuple[EngineModel, EngineModel] | None:
        """Return two different engines: the first is open, the second may be closing."""
        one = self.pick_open(by)
        if one is None:
            return None
        others = [node for node in self.nodes if node is not one and node.state != "killed"]
        return (one, others[to % len(others)]) if others else None

    # ------------------------------------------------------------------------------------------------------ recording

    def start_task(
        self,
        what: str,
        call: Callable[[], Awaitable[object]],
        on_return: Callable[[], object] = lambda: None,
    ) -> TrackedTask:
        """Await something in a task of its own."""
        task = TrackedTask(f"{what} of step {self.step}", call, on_return).start(self._task_group)
        self.tasks.append(task)
        return task

    def add_part(self, part: TransferPart) -> None:
        """Record what a submitted transfer does at one peer."""
        part.submitted = self.step
        self.parts.append(part)
        if part.counter_model is not None:
            part.counter_model.promise(part.chunks, part.counts)

    def add_disruption(self, disruption: Disruption) -> Disruption:
        """Record that something was done to engines."""
        self.disruptions.append(disruption)
        self.barriers_may_fail = True
        return disruption

    def on_disconnected(self, disruption: Disruption) -> None:
        """Record that a disconnect is over: what the peer had posted before has arrived, or never will (rule 8)."""
        disruption.ended = self.step
        if self.fabric is None:  # a real network may need longer than the grace; then only closing a region is certain
            return
        for part in self.parts:
            # A scatter has the path of any of its parts: this part may be posted only when the two connect again.
            posted = part.posted is not None and part.posted < disruption.began and part.transfer.operation != "scatter"
            if posted and part.to is disruption.one and part.by is disruption.other:
                for chunk in part.chunks:
                    if chunk.arena.engine is part.to.engine:
                        chunk.settle(str(part))

    def link_was_broken(self, one: EngineModel, other: EngineModel) -> bool:
        """Return whether a connection between two engines may have ended in this schedule."""
        return any(disruption.breaks_links and disruption.affects(one, other) for disruption in self.disruptions)

    def any_link_was_broken(self, node: EngineModel) -> bool:
        """Return whether any connection of an engine may have ended in this schedule."""
        return any(self.link_was_broken(node, other) for other in self.nodes if other is not node)

    def on_region_closed(self, node: EngineModel, registration: Registration) -> None:
        """Record that a region is closed: from now on nothing from a peer may land in it."""
        region = registration.region
        claim(region.leases == 0, f"{region.name} was closed with {region.leases} leases out")
        registration.closed = self.step
        self.closed_registrations.append((node, registration))
        for part in self.parts:
            for chunk in part.chunks:
                if part.registration is registration and chunk.arena is registration.arena:
                    chunk.settle(str(part))
