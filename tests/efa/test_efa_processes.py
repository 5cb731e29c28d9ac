"""Two processes on emulated devices: unequal numbers of NICs, and a process that is killed or stopped.

Run as a program this is the other process: it offers memory, and writes into its parent's.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest

from aio_transfer import PeerLostError, RemoteRegion, TransferEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

NBYTES = 8 << 20
PAGE = 64 << 10
PAGES = np.arange(NBYTES // PAGE)
DEVICES = int(os.environ.get("EFA_EMULATOR_DEVICES", "1"))
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(120),
    pytest.mark.skipif("EFA_EMULATOR_LOG" not in os.environ, reason="no emulated devices here: nox -s efa"),
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def open_engine(label: str, rails: int) -> TransferEngine:
    options = {"provider": "efa", "fabric": os.environ.get("EFA_FABRIC", "efa-direct"), "rails": rails}
    return TransferEngine(backend="libfabric", label=label, options={"libfabric": options})


# -------------------------------------------------------------------------------------------------- the other process


def send_message(**words: object) -> None:
    print(json.dumps(words), flush=True)  # noqa: T201 - the parent reads it


async def receive_line() -> str:
    return (await anyio.to_thread.run_sync(sys.stdin.readline)).strip()


async def main() -> None:
    """Write as often as the parent commands, or for ever, and report what has arrived."""
    async with open_engine("child", int(sys.argv[1])) as engine:
        memory, source = engine.allocate(NBYTES), engine.allocate(NBYTES)
        region, here = await engine.register(memory), await engine.register(source)
        counter = engine.counter()
        send_message(descriptor=bytes(region.descriptor(counter)).hex())
        remote = RemoteRegion.from_bytes(bytes.fromhex(await receive_line()))
        while (line := await receive_line()) not in ("", "quit"):
            if line == "sum":
                send_message(sum=int(memory.view(np.uint32).sum(dtype=np.uint64)), value=counter.value)
                continue
            if line.startswith("wait"):
                await counter.wait(int(line.split()[1]))
                send_message(waited=True)
                continue
            for value in range(1, 10**6) if line == "forever" else (int(line),):
                source[:] = value % 251
                await engine.write(here[:], remote[:])
                await engine.write_pages(here.pages(PAGES, PAGE), remote.pages(PAGES, PAGE))
                send_message(written=value)


# --------------------------------------------------------------------------------------------------------------- ours


class Child:
    def __init__(self, rails: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__)), str(rails)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def receive(self) -> dict[str, object]:
        return json.loads(await anyio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True))

    def send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    one = Child(getattr(request, "param", 1))
    yield one
    one.process.kill()
    one.process.communicate()


COUNTS = [(1, 1), (2, 2), (4, 4), (1, 3), (3, 1), (2, 4), (4, 2), (3, 2)]


@pytest.mark.parametrize(("here", "child"), COUNTS, indirect=["child"], ids=[f"{a}-{b}" for a, b in COUNTS])
async def test_sides_with_unequal_numbers_of_nics_reach_each_other(
    here: int, child: Child, request: pytest.FixtureRequest
) -> None:
    if max(here, request.node.callspec.params["child"]) > DEVICES:
        pytest.skip(f"{DEVICES} devices are emulated")
    async with open_engine("parent", here) as engine:
        memory, source = engine.allocate(NBYTES), engine.allocate(NBYTES)
        region, ours = await engine.register(memory), await engine.register(source)
        counter = engine.counter()
        remote = RemoteRegion.from_bytes(bytes.fromhex(str((await child.receive())["descriptor"])))
        child.send(bytes(region.descriptor(counter)).hex())
        source[:] = np.random.default_rng(3).integers(0, 256, NBYTES, dtype=np.uint8)
        for _ in range(3):
            await engine.write(ours[:], remote[:])
        await engine.write_pages(ours.pages(PAGES, PAGE), remote.pages(PAGES, PAGE))
        child.send(f"wait {3 + len(PAGES)}")
        assert await child.receive() == {"waited": True}
        child.send("sum")
        assert await child.receive() == {
            "sum": int(source.view(np.uint32).sum(dtype=np.uint64)),
            "value": 3 + len(PAGES),
        }
        child.send("77")
        await counter.wait(1 + len(PAGES))
        assert (memory == 77).all()
        assert await child.receive() == {"written": 77}
        assert counter.value == 1 + len(PAGES)
        child.send("quit")
        await anyio.to_thread.run_sync(child.process.wait)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_a_lost_writer_fails_the_targets_wait(child: Child, number: int) -> None:
    async with open_engine("parent", 1) as engine:
        memory = engine.allocate(NBYTES)
        region = await engine.register(memory)
        counter = engine.counter()
        await child.receive()
        child.send(bytes(region.descriptor(counter)).hex())
        child.send("forever")
        await child.receive()  # it is in the middle of a later round now
        began = time.perf_counter()
        child.process.send_signal(number)
        with pytest.raises(PeerLostError):
            await counter.wait(10**9)
        assert time.perf_counter() - began < 3
        await region.aclose()  # its access is revoked for certain
        memory[:] = 99
        child.process.send_signal(signal.SIGCONT)
        await anyio.sleep(0.5)  # time is under test: the continued child writes until it learns that it is lost
        assert (memory == 99).all()
        counter.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_a_lost_target_fails_the_writers_transfers(child: Child, number: int) -> None:
    async with open_engine("parent", 1) as engine:
        source = await engine.register(engine.allocate(NBYTES))
        remote = RemoteRegion.from_bytes(bytes.fromhex(str((await child.receive())["descriptor"])))
        await engine.write(source[:], remote[:])
        transfers = [engine.submit_write(source[:], remote[:]) for _ in range(8)]
        began = time.perf_counter()
        child.process.send_signal(number)
        with pytest.raises(PeerLostError):
            while True:
                await engine.write(source[:], remote[:])
        assert time.perf_counter() - began < 3
        for transfer in transfers:
            try:
                await transfer
            except PeerLostError:
                continue
        await source.aclose()


if __name__ == "__main__":
    anyio.run(main)
