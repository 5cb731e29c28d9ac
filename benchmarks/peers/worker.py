"""Worker process of one library, in that library's environment: serves requests over a Unix socket."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from adapters.base import Adapter, AdapterOptions
from workloads import REGION_NBYTES, Workload, chunk_order, random_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUND_TRIPS_NBYTES: Final = 64
"""Size of the beginning of the memory, which round trips overwrite."""
EXIT_DELAY_S: Final = 3.0


class Worker:
    """Requests that a worker serves: every public method, by name."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    async def open(self) -> str:
        address = await self._adapter.open()
        if self._adapter.is_initiator:
            self._adapter.memory[:] = random_bytes(REGION_NBYTES)
        return address

    async def connect(self, other: str) -> None:
        await self._adapter.connect(other)

    async def prepare(self, work: dict[str, Any]) -> None:
        self._work = Workload(**work)
        if self._adapter.is_initiator:
            self._adapter.memory[:ROUND_TRIPS_NBYTES] = random_bytes(ROUND_TRIPS_NBYTES)
        else:
            self._adapter.memory[: self._work.moved] = 0
        self._adapter.prepare(self._work)

    async def check(self) -> None:
        """Compare every byte of a batch, at the target."""
        work, adapter = self._work, self._adapter
        arrived, sent = adapter.pages(adapter.memory), adapter.pages(random_bytes(work.moved))
        for theirs, ours in zip(chunk_order(work, "target"), chunk_order(work, "source"), strict=True):
            if not np.array_equal(arrived[theirs], sent[ours]):
                raise AssertionError(f"chunk {ours} of {work.nbytes} B: the target differs from the source")

    async def move(self, iterations: int, pids: Sequence[int]) -> dict[str, Any]:
        """Move batches; returns times and CPU time in nanoseconds."""
        adapter, now = self._adapter, time.perf_counter_ns
        iterations_ns: list[int] = []
        in_flight: deque[tuple[Any, int]] = deque()

        async def await_oldest() -> None:
            batch, since = in_flight.popleft()
            await adapter.finish(batch)
            iterations_ns.append(now() - since)

        cpu_before, begin = cpu_ns(pids), now()
        for _ in range(iterations):
            if len(in_flight) == self._work.depth:
                await await_oldest()
            since = now()
            in_flight.append((await adapter.submit(), since))
        while in_flight:
            await await_oldest()
        return {"elapsed_ns": now() - begin, "iterations_ns": iterations_ns, "cpu_ns": cpu_ns(pids) - cpu_before}

    async def receive_batches(self, iterations: int) -> None:
        await self._adapter.receive_batches(iterations)

    async def ping(self, iterations: int, pids: Sequence[int]) -> dict[str, Any]:
        """Send words and await each back."""
        now, ping = time.perf_counter_ns, self._adapter.ping
        iterations_ns: list[int] = []
        cpu_before, begin = cpu_ns(pids), now()
        since, first = begin, begin & 0xFFFFFFFF  # a value that no earlier sample has used last
        for value in range(first, first + iterations):
            if (answer := await ping(value)) != value:
                raise AssertionError(f"sent {value}, but {answer} came back")
            until = now()
            iterations_ns.append(until - since)
            since = until
        return {"elapsed_ns": since - begin, "iterations_ns": iterations_ns, "cpu_ns": cpu_ns(pids) - cpu_before}

    async def pong(self, iterations: int) -> None:
        for _ in range(iterations):
            await self._adapter.pong()


def cpu_ns(pids: Sequence[int]) -> int:
    """Return the user and system time so far of processes; ~pid << 3 | 2 is the clock id of posix-timers.h."""
    return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)


async def serve(adapter: Adapter, control: str) -> None:
    reader, writer = await asyncio.open_unix_connection(control)

    def send(message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    exit_with(writer.get_extra_info("socket").fileno())
    send({"role": adapter.start.role, "pid": os.getpid()})
    worker = Worker(adapter)
    while line := await reader.readline():
        request = json.loads(line)
        try:
            send({"result": await getattr(worker, request["request"])(**request["arguments"])})
        except Exception as error:  # noqa: BLE001 - reported to the comparing process
            traceback.print_exc()
            send({"error": f"{type(error).__name__}: {error}"})
        await writer.drain()
    await adapter.close()


def exit_with(control: int) -> None:
    """Exit soon after the other end of the socket is closed, even if a library never returns."""

    def watch() -> None:
        poll = select.poll()
        poll.register(control, select.POLLRDHUP)
        poll.poll()
        time.sleep(EXIT_DELAY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    options = json.loads(sys.argv[1])
    module, _, name = options.pop("adapter").partition(":")
    # One mpiexec starts both MPI processes and numbers them.
    start = AdapterOptions(**options | {"role": int(os.environ.get("PMI_RANK", options["role"]))})
    adapter = getattr(importlib.import_module(f"adapters.{module}"), name)(start)
    asyncio.run(serve(adapter, f"{start.folder}/control"))


if __name__ == "__main__":
    main()
