"""One end of one library, in that library's environment: does what it is told over a Unix socket, a line at a time."""

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
from adapters.base import Adapter, Start
from works import REGION_NBYTES, Work, chunks, fill

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUND_TRIPS_NBYTES: Final = 64
"""At the beginning of the memory, where round trips leave their words."""
LEAVE_S: Final = 3.0


class Worker:
    """What it can be told: every public method, by name."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    async def open(self) -> str:
        other = await self._adapter.open()
        if self._adapter.initiates:
            self._adapter.memory[:] = fill(REGION_NBYTES)
        return other

    async def join(self, other: str) -> None:
        await self._adapter.join(other)

    async def begin(self, work: dict[str, Any]) -> None:
        self._work = Work(**work)
        if self._adapter.initiates:
            self._adapter.memory[:ROUND_TRIPS_NBYTES] = fill(ROUND_TRIPS_NBYTES)
        else:
            self._adapter.memory[: self._work.moved] = 0
        self._adapter.begin(self._work)

    async def check(self) -> None:
        """Compare every byte of a batch, at the target."""
        work, adapter = self._work, self._adapter
        arrived, sent = adapter.pages(adapter.memory), adapter.pages(fill(work.moved))
        for theirs, ours in zip(chunks(work, "target"), chunks(work, "source"), strict=True):
            if not np.array_equal(arrived[theirs], sent[ours]):
                raise AssertionError(f"chunk {ours} of {work.nbytes} B: what arrived is not what was sent")

    async def move(self, rounds: int, pids: Sequence[int]) -> dict[str, Any]:
        """Move batches; returns times and CPU time in nanoseconds."""
        adapter, now = self._adapter, time.perf_counter_ns
        taken: list[int] = []
        under_way: deque[tuple[Any, int]] = deque()

        async def retire() -> None:
            batch, since = under_way.popleft()
            await adapter.finish(batch)
            taken.append(now() - since)

        before, begin = cpu_ns(pids), now()
        for _ in range(rounds):
            if len(under_way) == self._work.depth:
                await retire()
            since = now()
            under_way.append((await adapter.submit(), since))
        while under_way:
            await retire()
        return {"elapsed_ns": now() - begin, "rounds_ns": taken, "cpu_ns": cpu_ns(pids) - before}

    async def attend(self, rounds: int) -> None:
        await self._adapter.attend(rounds)

    async def ping(self, rounds: int, pids: Sequence[int]) -> dict[str, Any]:
        """Send words and await them back."""
        now, ping = time.perf_counter_ns, self._adapter.ping
        taken: list[int] = []
        before, begin = cpu_ns(pids), now()
        since, first = begin, begin & 0xFFFFFFFF  # a value that no earlier sample ended with
        for value in range(first, first + rounds):
            if (answer := await ping(value)) != value:
                raise AssertionError(f"sent {value}, and {answer} came back")
            until = now()
            taken.append(until - since)
            since = until
        return {"elapsed_ns": since - begin, "rounds_ns": taken, "cpu_ns": cpu_ns(pids) - before}

    async def pong(self, rounds: int) -> None:
        for _ in range(rounds):
            await self._adapter.pong()


def cpu_ns(pids: Sequence[int]) -> int:
    """Return user and system time so far of whole processes: ~pid << 3 | 2 names a clock, see posix-timers.h."""
    return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)


async def serve(adapter: Adapter, control: str) -> None:
    reader, writer = await asyncio.open_unix_connection(control)

    def say(message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    leave_with(writer.get_extra_info("socket").fileno())
    say({"role": adapter.start.role, "pid": os.getpid()})
    worker = Worker(adapter)
    while line := await reader.readline():
        ask = json.loads(line)
        try:
            say({"say": await getattr(worker, ask["do"])(**ask["arguments"])})
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            traceback.print_exc()
            say({"failed": f"{type(error).__name__}: {error}"})
        await writer.drain()
    await adapter.close()


def leave_with(control: int) -> None:
    """End this process soon after the other end has hung up, even if a library never returns."""

    def watch() -> None:
        poll = select.poll()
        poll.register(control, select.POLLRDHUP)
        poll.poll()
        time.sleep(LEAVE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    said = json.loads(sys.argv[1])
    module, _, name = said.pop("adapter").partition(":")
    # Both MPI processes are started by one command, which numbers them.
    start = Start(**said | {"role": int(os.environ.get("PMI_RANK", said["role"]))})
    adapter = getattr(importlib.import_module(f"adapters.{module}"), name)(start)
    asyncio.run(serve(adapter, f"{start.folder}/control"))


if __name__ == "__main__":
    main()
