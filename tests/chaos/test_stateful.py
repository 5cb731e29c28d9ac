"""Stateful tests: hypothesis chooses the operations, and shrinks a list that fails to the shortest one."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import anyio
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from aio_transfer.testing.fuzz.generator import OPERATIONS
from aio_transfer.testing.fuzz.mesh import SHAPES, Mesh
from aio_transfer.testing.fuzz.model.world import World
from aio_transfer.testing.fuzz.operations.definitions import EnterBarrier, Operation
from aio_transfer.testing.fuzz.quiesce import quiesce
from aio_transfer.testing.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NUMBERS = st.integers(0, 63)
SPEC = Spec(backend="sim")
EXAMPLES, STEPS = 60, 25


class Stage:
    """A mesh and its world in an event loop that runs only during the calls of this object.

    One host task owns the task group and performs every call.
    """

    def __init__(self, spec: Spec, shape: tuple[int, ...], seed: int) -> None:
        self._runner = asyncio.Runner()
        self._ready: asyncio.Event
        self._host = self._runner.run(self._begin(spec, shape, seed))

    async def _begin(self, spec: Spec, shape: tuple[int, ...], seed: int) -> asyncio.Task[None]:
        self._calls: asyncio.Queue[tuple[Callable[[], Awaitable[None]] | None, asyncio.Future[None]]] = asyncio.Queue()
        host = asyncio.get_running_loop().create_task(self._serve(spec, shape, seed))
        await self._ask(host, asyncio.sleep, 0)
        return host

    async def _serve(self, spec: Spec, shape: tuple[int, ...], seed: int) -> None:
        async with Mesh(spec, shape, seed) as mesh:
            await mesh.begin_schedule(seed)
            await mesh.form_group()
            try:
                async with anyio.create_task_group() as tasks:
                    self.world = World(mesh, tasks)
                    while await self._next():
                        pass
                    await quiesce(self.world)
            except BaseException:
                mesh.mark_failed()
                raise
            finally:
                del self.world  # a reference to a closed engine keeps its threads
            await mesh.end_schedule()

    async def _next(self) -> bool:
        call, done = await self._calls.get()
        if call is None:
            return False
        await call()
        done.set_result(None)
        return True

    async def _ask(self, host: asyncio.Task[None], call: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        done = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((lambda: call(*arguments), done))
        await asyncio.wait([host, done], return_when=asyncio.FIRST_COMPLETED)
        if host.done():
            host.result()

    def apply(self, operation: Operation) -> None:
        """Perform an operation."""
        self._runner.run(self._ask(self._host, lambda: self.world.apply(operation)))

    def check(self) -> None:
        """Check the invariants."""

        async def check() -> None:
            self.world.check("between two operations")

        if not self._host.done():
            self._runner.run(self._ask(self._host, check))

    def close(self) -> None:
        """Let everything end, and compare it with the model."""
        with contextlib.closing(self._runner):
            if not self._host.done():
                self._calls.put_nowait((None, self._runner.get_loop().create_future()))
                self._runner.run(_finish(self._host))


async def _finish(host: asyncio.Task[None]) -> None:
    await host


class Machine(RuleBasedStateMachine):
    """State machine with one rule per kind of operation."""

    stage: Stage | None = None

    @initialize(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
    def open(self, shape: tuple[int, ...], seed: int) -> None:
        self.stage = Stage(SPEC, shape, seed)

    @invariant()
    def holds(self) -> None:
        if self.stage is not None:
            self.stage.check()

    def teardown(self) -> None:
        if self.stage is not None:
            self.stage.close()


def _rule_of(kind: type[Operation]) -> Callable[..., None]:
    def make(self: Machine, **numbers: int) -> None:
        assert self.stage is not None
        self.stage.apply(kind(**numbers))

    make.__name__ = kind.__name__.lower()
    return rule(**{field.name: NUMBERS for field in fields(kind)})(make)


for _kind in OPERATIONS:
    setattr(Machine, _kind.__name__.lower(), _rule_of(_kind))


@pytest.mark.timeout(180)
def test_no_list_of_operations_breaks_the_contract(base: int) -> None:
    """A run is repeated by its AIO_TRANSFER_SEED."""
    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        run_state_machine_as_test(hypothesis.seed(base)(Machine), settings=settings)
    except BaseException as error:
        error.add_note(f"to repeat: AIO_TRANSFER_SEED={base} pytest tests/chaos/test_stateful.py")
        raise


def test_every_kind_of_operation_is_a_rule() -> None:
    rules = {name for name, one in vars(Machine).items() if hasattr(one, RULE_MARKER)}
    assert rules == {kind.__name__.lower() for kind in OPERATIONS}
    assert EnterBarrier in OPERATIONS
