"""Simulated fabric between processes: a worker thread in each, datagrams between them.

Run as a program this is the other process: it offers memory, and writes as its parent commands.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import struct
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

    from aio_transfer import ImmCounter, Region

NBYTES = 256 << 10
PAGE = 4 << 10
OPTIONS = {"sim": {"nics": 3, "mtu": 512}}
HEADER = struct.Struct("<BBHIIIQQQQQQII")
"""A datagram's first 72 bytes, as ``backends/sim/fabric.h`` has them."""
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


# -------------------------------------------------------------------------------------------------- the other process


def send_message(**words: object) -> None:
    print(json.dumps(words), flush=True)  # noqa: T201 - the parent reads it


async def main() -> None:
    """Write as often as the parent commands, or for ever, and report what has arrived."""
    async with TransferEngine(backend="sim", label="child", options=OPTIONS) as engine:
        memory, source = engine.allocate(NBYTES), engine.allocate(NBYTES)
        region, here = await engine.register(memory), await engine.register(source)
        counter = engine.counter()
        send_message(descriptor=bytes(region.descriptor(counter)).hex())
        remote = RemoteRegion.from_bytes(bytes.fromhex((await receive_words())[0]))
        ids = np.arange(NBYTES // PAGE)
        for rounds in itertools.count(1):
            words = await receive_words()
            match words:
                case ["write", value, times]:
                    source[:] = int(value)
                    for _ in range(int(times)):
                        await engine.write_pages(here.pages(ids, PAGE), remote.pages(ids, PAGE))
                    send_message(rounds=rounds)
                case ["forever"]:
                    send_message(rounds=rounds)
                    while True:
                        await engine.write_pages(here.pages(ids, PAGE), remote.pages(ids, PAGE))
                case ["wait", count]:
                    await counter.wait(int(count))
                    send_message(value=counter.value, bytes=np.unique(memory).tolist())
                case _:
                    return


async def receive_words() -> list[str]:
    return (await anyio.to_thread.run_sync(sys.stdin.readline)).split()


# ------------------------------------------------------------------------------------------------------- this process


class Child:
    """The other process; it answers in JSON lines."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def ask(self, *words: object) -> dict[str, object]:
        if words:
            print(*words, file=self.process.stdin, flush=True)
        line = await anyio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
        return json.loads(line)

    def send(self, line: str) -> None:
        print(line, file=self.process.stdin, flush=True)

    async def quit(self) -> None:
        """Let it close; the wait is in a thread, since this event loop answers its disconnect."""
        self.send("quit")
        assert await anyio.to_thread.run_sync(self.process.wait) == 0

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def child() -> Iterator[Child]:
    one = Child()
    try:
        yield one
    finally:
        one.close()


class Here:
    """This process's memory, and the child's view of it."""

    def __init__(self, engine: TransferEngine) -> None:
        self.engine = engine
        self.memory, self.source = engine.allocate(NBYTES), engine.allocate(NBYTES)
        self.ids = np.arange(NBYTES // PAGE)

    async def meet(self, other: Child) -> None:
        self.there: RemoteRegion = RemoteRegion.from_bytes(bytes.fromhex(str((await other.ask())["descriptor"])))
        self.region: Region = await self.engine.register(self.memory)
        self.here: Region = await self.engine.register(self.source)
        self.counter: ImmCounter = self.engine.counter(sources=[self.there])
        other.send(bytes(self.region.descriptor(self.counter)).hex())

    async def write(self, value: int, times: int) -> None:
        self.source[:] = value
        for _ in range(times):
            await self.engine.write_pages(self.here.pages(self.ids, PAGE), self.there.pages(self.ids, PAGE))

    async def until_level(self) -> None:
        await self.region.aclose()
        await self.here.aclose()
        with anyio.fail_after(3):
            while self.handles:
                await anyio.lowlevel.checkpoint()

    @property
    def handles(self) -> int:
        return self.engine.statistics().drivers["sim"]["handles"]


async def test_two_processes_write_in_both_directions() -> None:
    pages, times = NBYTES // PAGE, 5
    async with TransferEngine(backend="sim", options=OPTIONS) as engine:
        one = Here(engine)
        with child() as other:
            await one.meet(other)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.write, 7, times)
                tasks.start_soon(other.ask, "write", 9, times)
            await one.counter.wait(times * pages)
            assert (one.memory == 9).all()
            assert await other.ask("wait", times * pages) == {"value": times * pages, "bytes": [7]}
            assert one.counter.value == times * pages
            await one.engine.read(one.here[:], one.there[:])
            assert (one.source == 7).all()
            await other.quit()
        await one.until_level()


async def test_a_killed_writer_is_reported_as_lost() -> None:
    async with TransferEngine(backend="sim", options=OPTIONS) as engine:
        one = Here(engine)
        with child() as other:
            await one.meet(other)
            await other.ask("forever")
            await one.counter.wait(100)  # it is in the middle of it
            began = time.perf_counter()
            other.kill()
            with pytest.raises(PeerLostError):
                await one.counter.wait(10**9)
            assert time.perf_counter() - began < 2
            count = one.counter.value
            one.memory[:] = 99
            await one.until_level()
            assert (one.memory == 99).all()
            assert one.counter.value == count


async def test_writes_to_a_killed_target_end_with_peer_lost() -> None:
    async with TransferEngine(backend="sim", options=OPTIONS) as engine:
        one = Here(engine)
        with child() as other, child() as third:
            await one.meet(other)
            served = Here(engine)
            await served.meet(third)
            await one.write(7, 1)
            source, target = one.here.pages(one.ids, PAGE), one.there.pages(one.ids, PAGE)
            transfers = [engine.submit_write_pages(source, target) for _ in range(8)]
            began = time.perf_counter()
            other.kill()
            for transfer in transfers:
                with contextlib.suppress(PeerLostError):  # the first may have been done
                    await transfer
            with pytest.raises(PeerLostError):
                await transfers[-1]
            with pytest.raises(PeerLostError):
                await one.write(7, 1)
            assert time.perf_counter() - began < 2
            await served.write(8, 1)
            assert await third.ask("wait", 64) == {"value": 64, "bytes": [8]}
            await third.quit()
            for region in (one.region, one.here):
                await region.aclose()
            await served.until_level()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stopped_process_does_not_block_others() -> None:
    options = {"sim": {"mtu": 512, "depth": 64}}  # of pieces, fewer than wait for the frozen one
    async with TransferEngine(backend="sim", options=options) as engine:
        one, served = Here(engine), Here(engine)
        with child() as other, child() as third:
            await one.meet(other)
            await served.meet(third)
            await one.write(7, 1)
            await served.write(7, 1)
            os.kill(other.process.pid, signal.SIGSTOP)
            await anyio.to_thread.run_sync(os.waitid, os.P_PID, other.process.pid, os.WSTOPPED, abandon_on_cancel=True)
            source, target = one.here.pages(one.ids, PAGE), one.there.pages(one.ids, PAGE)
            transfers = [engine.submit_write_pages(source, target) for _ in range(4)]
            writes = 0
            while not transfers[-1].done:
                await engine.write(served.here[:8], served.there[:8])
                writes += 1
            for transfer in transfers:
                assert isinstance(transfer.exception(), PeerLostError)
            assert writes > 10
            await third.quit()


def address_of(process: int) -> str:
    """Return the name of a process's socket, as anybody on this host can."""
    with pathlib.Path("/proc/net/unix").open(encoding="ascii", errors="replace") as lines:
        found = [line.split()[-1] for line in lines if f"@aio-transfer-sim-{process}-" in line]
    assert len(found) == 1, found
    return "\0" + found[0][1:]


def garbage(rng: np.random.Generator) -> Iterator[bytes]:
    """Make datagrams of every kind, to every NIC, of no connection and for no region."""
    yield b""
    yield b"\0" * 71
    yield b"\xff" * HEADER.size
    yield rng.bytes(65_536 + HEADER.size)
    yield rng.bytes(150_000)
    for _ in range(500):
        yield rng.bytes(int(rng.integers(1, 2000)))
    for kind, to, link in itertools.product((0, 1, 2, 3, 4, 5, 6, 255), range(5), (0, 1, int(rng.integers(1 << 62)))):
        words = [1, 0xFF << 24, 1, to, link, link, 1, 1, 0, 0]  # status and immediate, from, to, link, back, work, key
        yield HEADER.pack(kind, 0, *words, 8, 1) + bytes(8)
        yield HEADER.pack(kind, 255, *words, 0xFFFF_FFFF, 0xFFFF_FFFF) + rng.bytes(100)


async def test_datagrams_of_unknown_senders_change_nothing() -> None:
    pages, times = NBYTES // PAGE, 4
    rng = np.random.default_rng(1)
    async with TransferEngine(backend="sim", options=OPTIONS) as engine:
        one = Here(engine)
        with child() as other, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            await one.meet(other)
            await one.write(7, 1)
            await other.ask("write", 9, 1)
            await one.counter.wait(pages)
            handles, totals = one.handles, engine.statistics().drivers["sim"]

            def send_garbage() -> None:
                for address in (address_of(os.getpid()), address_of(other.process.pid)):
                    for datagram in garbage(rng):
                        stranger.sendto(datagram, address)

            await anyio.to_thread.run_sync(send_garbage)
            await other.ask("write", 9, 1)  # all that came before has been looked at when this is counted
            await one.counter.wait(pages)
            assert one.handles == handles
            assert (one.memory == 9).all()
            assert one.counter.value == 2 * pages
            assert engine.statistics().drivers["sim"]["dropped"] == totals["dropped"]

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, send_garbage)
                tasks.start_soon(one.write, 17, times)
                tasks.start_soon(other.ask, "write", 19, times)
            await one.counter.wait(times * pages)
            assert (one.memory == 19).all()
            assert one.counter.value == (2 + times) * pages
            expected = {"value": (1 + times) * pages, "bytes": [17]}
            assert await other.ask("wait", (1 + times) * pages) == expected
            await other.quit()
        await one.until_level()


if __name__ == "__main__":
    anyio.run(main)
