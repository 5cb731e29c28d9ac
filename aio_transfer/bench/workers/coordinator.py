"""Coordinator: starts the worker processes and calls steps in them. It sleeps while they measure."""

from __future__ import annotations

import os
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import anyio
import msgspec

from aio_transfer.bench.workers.messages import (
    WORKER_MESSAGES,
    WORKER_MODULE,
    StartWorker,
    StepRequest,
    StepResponse,
)
from aio_transfer.bench.workers.remote_worker import RemoteWorker
from aio_transfer.bench.workers.worker_state import (
    AllocatedMemory,
    AllocateMemory,
    AwaitCounts,
    Connect,
    Empty,
    allocate_memory,
    await_counts,
    connect,
)
from aio_transfer.subprocesses.child import Child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.workers.worker_state import RequestT, ResponseT, Step

__all__ = ("Coordinator", "WorkerClient", "start_workers")


class WorkerClient:
    """Calls of steps in one worker process."""

    def __init__(self, process: Child | RemoteWorker) -> None:
        """Take a started process."""
        self._process = process

    async def call(self, step: Step[RequestT, ResponseT], request: RequestT) -> ResponseT:
        """Run a step in the worker.

        :raises ChildFailedError: the step failed, or the process has exited
        """
        name = f"{step.__module__}:{step.__name__}"
        self._process.send(StepRequest(name, msgspec.Raw(msgspec.json.encode(request))))
        response = await self._process.receive(StepResponse)
        result: ResponseT = msgspec.json.decode(response.result, type=get_type_hints(step)["return"])
        return result

    async def allocate_memory(
        self, nbytes: int, *, engine: int = 0, foreign: bool = False, seed: int = 0
    ) -> AllocatedMemory:
        """Allocate and register memory."""
        return await self.call(
            allocate_memory, AllocateMemory(nbytes=nbytes, engine=engine, foreign=foreign, seed=seed)
        )

    async def connect(self, targets: Sequence[AllocatedMemory]) -> None:
        """Connect to the owners of memory."""
        await self.call(connect, Connect(targets=list(targets)))

    async def await_counts(self, counts: int, memory: int = 0) -> None:
        """Wait until exactly so many further counts have arrived."""
        await self.call(await_counts, AwaitCounts(counts=counts, memory=memory))


class Coordinator:
    """All workers of one test.

    :ivar remote_host: address of the second worker if it is on another host, else empty
    """

    def __init__(self, workers: Sequence[WorkerClient], remote_host: str = "") -> None:
        """Take started workers."""
        self.workers = tuple(workers)
        self.remote_host = remote_host

    def __getitem__(self, index: int) -> WorkerClient:
        """Return one worker."""
        return self.workers[index]

    async def call_each(self, step: Step[RequestT, ResponseT], requests: Sequence[RequestT]) -> list[ResponseT]:
        """Run one step concurrently in the first ``len(requests)`` workers, one request each."""
        responses: dict[int, ResponseT] = {}

        async def call(index: int) -> None:
            responses[index] = await self.workers[index].call(step, requests[index])

        async with anyio.create_task_group() as group:
            for index in range(len(requests)):
                group.start_soon(call, index)
        return [responses[index] for index in range(len(requests))]

    async def call_pair(
        self, active: Step[RequestT, ResponseT], request: RequestT, passive: Step[RequestT, Empty]
    ) -> ResponseT:
        """Run ``active`` in the first worker while the second runs ``passive`` with the same request."""
        responses: list[ResponseT] = []

        async def call() -> None:
            responses.append(await self.workers[0].call(active, request))

        async with anyio.create_task_group() as group:
            group.start_soon(self.workers[1].call, passive, request)
            group.start_soon(call)
        return responses[0]


@asynccontextmanager
async def start_workers(options: Options, engines: Sequence[int]) -> AsyncIterator[Coordinator]:
    """Start one worker per element of ``engines``, with that many engines each.

    A pair of FIFOs connects the first two, unless the second is on another host.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aio-transfer-bench-")))
        pipes = [str(folder / name) for name in ("there", "back")]
        for pipe in pipes:
            os.mkfifo(pipe, 0o600)
        remote = await stack.enter_async_context(RemoteWorker(options.connect)) if options.connect else None
        clients: list[WorkerClient] = []
        for index, count in enumerate(engines):
            process: Child | RemoteWorker
            if remote is not None and index == 1:
                process, host = remote, remote.remote_host
            else:
                process = await stack.enter_async_context(
                    Child(WORKER_MODULE, f"bench process {index}", WORKER_MESSAGES)
                )
                host = "" if remote is None else remote.local_host
            clients.append(WorkerClient(process))
            process.send(
                StartWorker(
                    backend=options.backend,
                    loop=options.loop,
                    backend_options=options.backend_options(host),
                    engines=count,
                    pipes=pipes[:: -1 if index else 1],
                    host=host,
                )
            )
        yield Coordinator(clients, remote.remote_host if remote else "")
