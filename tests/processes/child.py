"""The other process of a two-process test: a target or a sender, told by lines on stdin, telling by lines on stdout."""

from __future__ import annotations

import json
import os
import sys
import time

import anyio
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine

PAGE = 64 << 10


def say(**words: object) -> None:
    """Tell the parent."""
    print(json.dumps(words), flush=True)  # noqa: T201 - the parent reads it


async def hear() -> str:
    """Wait for a line of the parent's."""
    return (await anyio.to_thread.run_sync(sys.stdin.readline)).strip()


async def target(engine: TransferEngine, nbytes: int) -> None:
    """Hand memory out, wait for counts, and answer what arrived."""
    memory = engine.allocate(nbytes)
    region = await engine.register(memory)
    counter = engine.counter()
    say(descriptor=bytes(region.descriptor(counter)).hex(), pid=os.getpid())
    while (line := await hear()) not in ("", "quit"):
        if line.startswith("busy"):
            say(busy=True)
            time.sleep(float(line.split()[1]))  # noqa: ASYNC251 - a loop that computes, and so answers nobody
            say(busy=False)
            continue
        await counter.wait(int(line))
        say(checksum=int(memory.view(np.uint32).sum(dtype=np.uint64)), value=counter.value)


async def sender(engine: TransferEngine, nbytes: int) -> None:
    """Write pages into the parent's memory, for ever or as often as it says."""
    memory = engine.allocate(nbytes)
    memory[:] = 7
    region = await engine.register(memory)
    say(pid=os.getpid(), address=engine.address.label)
    remote = RemoteRegion.from_bytes(bytes.fromhex(await hear()))
    pages = np.arange(nbytes // PAGE)
    while (line := await hear()) not in ("", "quit"):
        if line == "forever":
            while True:
                await engine.write_pages(region.pages(pages, PAGE), remote.pages(pages, PAGE))
                say(round=True)
        memory[:] = int(line)
        await engine.write_pages(region.pages(pages, PAGE), remote.pages(pages, PAGE))
        say(done=int(line))


def metronome() -> None:
    """Say how long this machine let a process wait that only sleeps: what no program here could have done better."""
    longest, last = 0.0, time.perf_counter()
    os.set_blocking(0, False)
    while True:
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        line = sys.stdin.readline()
        if line:
            say(longest=longest)
            longest = 0.0


async def main() -> None:
    """Be what the arguments say: role, backend, size in bytes."""
    role, backend, nbytes = sys.argv[1:4]
    options = {"libfabric": {"provider": "tcp"}} if backend == "libfabric" else {}
    async with TransferEngine(backend=backend, label=role, options=options) as engine:
        await (target if role == "target" else sender)(engine, int(nbytes))


if __name__ == "__main__":
    if sys.argv[1] == "metronome":
        metronome()
    anyio.run(main)
