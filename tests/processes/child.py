"""Child process of the two-process tests: a target or a sender, with commands on stdin and JSON lines on stdout."""

from __future__ import annotations

import json
import os
import sys
import time

import anyio
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine

PAGE = 64 << 10


def send(**words: object) -> None:
    """Send a message to the parent."""
    print(json.dumps(words), flush=True)  # noqa: T201 - the parent reads it


async def receive() -> str:
    """Wait for a line from the parent."""
    return (await anyio.to_thread.run_sync(sys.stdin.readline)).strip()


async def target(engine: TransferEngine, nbytes: int) -> None:
    """Offer memory, wait for counts, and answer what arrived."""
    memory = engine.allocate(nbytes)
    region = await engine.register(memory)
    counter = engine.counter()
    send(descriptor=bytes(region.descriptor(counter)).hex(), pid=os.getpid())
    while (line := await receive()) not in ("", "quit"):
        if line.startswith("busy"):
            send(busy=True)
            time.sleep(float(line.split()[1]))  # noqa: ASYNC251 - stands for a computation that blocks the event loop
            send(busy=False)
            continue
        await counter.wait(int(line))
        send(checksum=int(memory.view(np.uint32).sum(dtype=np.uint64)), value=counter.value)


async def sender(engine: TransferEngine, nbytes: int) -> None:
    """Write pages into the parent's memory, once per command or for ever."""
    memory = engine.allocate(nbytes)
    memory[:] = 7
    region = await engine.register(memory)
    send(pid=os.getpid(), address=engine.address.label)
    remote = RemoteRegion.from_bytes(bytes.fromhex(await receive()))
    pages = np.arange(nbytes // PAGE)
    while (line := await receive()) not in ("", "quit"):
        if line == "forever":
            while True:
                await engine.write_pages(region.pages(pages, PAGE), remote.pages(pages, PAGE))
                send(round=True)
        memory[:] = int(line)
        await engine.write_pages(region.pages(pages, PAGE), remote.pages(pages, PAGE))
        send(done=int(line))


def metronome() -> None:
    """Report the longest pause of a process that only sleeps: the shortest that this machine allows."""
    longest, last = 0.0, time.perf_counter()
    os.set_blocking(0, False)
    while True:
        time.sleep(0.001)  # its length is what is measured
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        line = sys.stdin.readline()
        if line:
            send(longest=longest)
            longest = 0.0


async def main() -> None:
    """Run the role of the arguments: role, backend, size in bytes."""
    role, backend, nbytes = sys.argv[1:4]
    options = {"libfabric": {"provider": "tcp"}} if backend == "libfabric" else {}
    async with TransferEngine(backend=backend, label=role, options=options) as engine:
        await (target if role == "target" else sender)(engine, int(nbytes))


if __name__ == "__main__":
    if sys.argv[1] == "metronome":
        metronome()
    anyio.run(main)
