"""The coordinator's side: the measured processes, and the steps they are asked to perform. It sleeps meanwhile."""

from __future__ import annotations

import os
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import anyio
import msgspec

from aio_transfer.bench.workers.messages import FROM_WORKER, WORKER, Did, Do, Start
from aio_transfer.bench.workers.remote import Far
from aio_transfer.bench.workers.worker_state import Aim, Expect, Nothing, Offer, Offered, aim, expect, offer
from aio_transfer.subprocesses.child import Child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.workers.worker_state import AskT, SayT, Step

__all__ = ("Team", "Worker", "team")


class Worker:
    """One measured process."""

    def __init__(self, child: Child | Far) -> None:
        """Take a started child."""
        self._child = child

    async def call(self, step: Step[AskT, SayT], ask: AskT) -> SayT:
        """Perform a step over there.

        :raises ChildFailedError: it failed, or the process is gone
        """
        name = f"{step.__module__}:{step.__name__}"
        self._child.send(Do(name, msgspec.Raw(msgspec.json.encode(ask))))
        did = await self._child.receive(Did)
        said: SayT = msgspec.json.decode(did.say, type=get_type_hints(step)["return"])
        return said

    async def offer(self, nbytes: int, *, engine: int = 0, foreign: bool = False, seed: int = 0) -> Offered:
        """Let it take memory and register it."""
        return await self.call(offer, Offer(nbytes=nbytes, engine=engine, foreign=foreign, seed=seed))

    async def aim(self, targets: Sequence[Offered]) -> None:
        """Let it connect to the owners of memory."""
        await self.call(aim, Aim(targets=list(targets)))

    async def expect(self, counts: int, held: int = 0) -> None:
        """Let it wait until exactly so many counts have come."""
        await self.call(expect, Expect(counts=counts, held=held))


class Team:
    """All measured processes of one test."""

    def __init__(self, workers: Sequence[Worker], far: str = "") -> None:
        """Take started workers.

        :param far: the address of the second one, where it is on another host
        """
        self.workers = tuple(workers)
        self.far = far

    def __getitem__(self, index: int) -> Worker:
        """Return one of them."""
        return self.workers[index]

    async def all(self, step: Step[AskT, SayT], asks: Sequence[AskT]) -> list[SayT]:
        """Perform one step in several of them at the same time, the first ``len(asks)``."""
        said: list[Any] = [None] * len(asks)

        async def one(index: int) -> None:
            said[index] = await self.workers[index].call(step, asks[index])

        async with anyio.create_task_group() as group:
            for index in range(len(asks)):
                group.start_soon(one, index)
        return said

    async def alone(self, active: Step[AskT, SayT], ask: AskT, passive: Step[AskT, Nothing]) -> SayT:
        """Perform ``active`` in the first worker while the second performs ``passive`` with the same argument."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.workers[1].call, passive, ask)
            said = await self.workers[0].call(active, ask)
        return said  # noqa: RET504 - within the block, mypy would ask what comes after it


@asynccontextmanager
async def team(options: Options, engines: Sequence[int]) -> AsyncIterator[Team]:
    """Start one process per element of ``engines``, with so many engines in it.

    The first two are also connected by a pair of FIFOs, unless the second is on another host.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aio-transfer-bench-")))
        pipes = [str(folder / name) for name in ("there", "back")]
        for pipe in pipes:
            os.mkfifo(pipe, 0o600)
        far = await stack.enter_async_context(Far(options.connect)) if options.connect else None
        children: list[Child | Far] = []
        for index, count in enumerate(engines):
            child: Child | Far
            if far is not None and index == 1:
                child, host = far, far.there
            else:
                child = await stack.enter_async_context(Child(WORKER, f"bench process {index}", FROM_WORKER))
                host = "" if far is None else far.here
            children.append(child)
            child.send(
                Start(
                    backend=options.backend,
                    loop=options.loop,
                    backend_options=options.backend_options(host),
                    engines=count,
                    pipes=pipes[:: -1 if index else 1],
                    host=host,
                )
            )
        yield Team([Worker(child) for child in children], far.there if far else "")
