"""Lost peers: kill -9 and SIGSTOP of the other process in the middle of 1 GiB of paged writes.

Every waiter gets PeerLostError within 2 s, a third peer is served throughout, file descriptors and native handles
return to their former number, and a process that is continued writes nothing more into memory that was released.
"""

from __future__ import annotations

import contextlib
import gc
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
from aio_transfer.driver.backend_registry import open_driver
from aio_transfer.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CHILD = pathlib.Path(__file__).with_name("child.py")
GIB = 1 << 30
PAGE = 64 << 10
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["shm", "libfabric", "tcp"])
def backend(request: pytest.FixtureRequest) -> str:
    try:
        open_driver(request.param, {}).driver.close()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    return request.param


class Child:
    """The other process; its lines are messages in JSON."""

    def __init__(self, role: str, backend: str, nbytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), role, backend, str(nbytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    async def receive(self) -> dict[str, object]:
        line = await anyio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
        return json.loads(line)

    def send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    async def remote(self) -> RemoteRegion:
        return RemoteRegion.from_bytes(bytes.fromhex(str((await self.receive())["descriptor"])))

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def child(role: str, backend: str, nbytes: int) -> Iterator[Child]:
    one = Child(role, backend, nbytes)
    try:
        yield one
    finally:
        one.close()


class Service:
    """Service of a third peer: the gaps between its writes, compared with those of a process that only sleeps."""

    def __init__(self, metronome: Child) -> None:
        self.gaps: list[float] = []
        self._metronome = metronome
        self._last = time.perf_counter()

    def served(self) -> None:
        now = time.perf_counter()
        self.gaps.append(now - self._last)
        self._last = now

    async def reset(self) -> None:
        self._metronome.send("reset")
        await self._metronome.receive()
        self.gaps.clear()
        self._last = time.perf_counter()  # the write in flight began before the metronome was reset

    async def check(self) -> None:
        """Check that no gap exceeded 50 ms plus the longest pause of the machine itself."""
        self._metronome.send("report")
        longest = float((await self._metronome.receive())["longest"])
        assert max(self.gaps) < 0.05 + longest, "the third peer had to wait"


@contextlib.asynccontextmanager
async def third_peer(engine: TransferEngine, backend: str) -> AsyncIterator[Service]:
    """Write to a third peer throughout the block."""
    with child("target", backend, 1 << 20) as third, child("metronome", backend, 0) as metronome:
        service = Service(metronome)
        remote = await third.remote()
        source = await engine.register(engine.allocate(PAGE))

        async def serve() -> None:
            while True:
                await engine.write(source[:4096], remote[:4096])
                await anyio.sleep(0.001)  # time is under test: a write per millisecond, as the metronome sleeps
                service.served()

        await engine.write(source[:4096], remote[:4096])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            yield service
            tasks.cancel_scope.cancel()
        await source.aclose()


def fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - paths of closed fds cannot be looked at


def handles(engine: TransferEngine) -> int:
    return sum(driver["handles"] for driver in engine.statistics().drivers.values())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_a_lost_sender_fails_the_receivers_wait(backend: str, number: int) -> None:
    async with TransferEngine(backend=backend) as engine, third_peer(engine, backend) as service:
        await anyio.to_thread.run_sync(time.perf_counter)  # the descriptors of its worker thread are counted, too
        level, open_handles = fds(), handles(engine)
        memory = engine.allocate(GIB)
        region = await engine.register(memory)
        counter = engine.counter()
        with child("sender", backend, GIB) as sender:
            await sender.receive()
            sender.send(bytes(region.descriptor(counter)).hex())
            sender.send("forever")
            await sender.receive()  # after a whole round the sender is in the middle of a later one
            arrived = counter.value
            await service.reset()
            began = time.perf_counter()
            sender.signal(number)
            with pytest.raises(PeerLostError, match=r"reset|silent"):
                await counter.wait(10**9)
            assert time.perf_counter() - began < 2
            assert counter.value >= arrived
            await service.check()

            released = None
            with anyio.move_on_after(1) as waited:
                await region.aclose()  # a process stopped inside a write may hold it: then this must not return
                released = memory
            if released is not None:
                released[:] = 99
            if number == signal.SIGSTOP:
                sender.signal(signal.SIGCONT)
                assert await anyio.to_thread.run_sync(sender.process.wait) != 0, "it learned that it was declared lost"
            if released is not None:
                assert (released == 99).all(), "a lost process wrote into memory that was released"
            elif waited.cancelled_caught:
                await region.aclose()
        counter.close()
        del memory, released
        assert fds() <= level
        assert handles(engine) <= open_handles


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_a_lost_target_fails_the_senders_writes(backend: str, number: int) -> None:
    async with TransferEngine(backend=backend) as engine, third_peer(engine, backend) as service:
        await anyio.to_thread.run_sync(time.perf_counter)
        level, open_handles = fds(), handles(engine)
        source = await engine.register(engine.allocate(GIB))
        ids = np.arange(GIB // PAGE)
        with child("target", backend, GIB) as target:
            remote = await target.remote()
            await engine.write_pages(source.pages(ids, PAGE), remote.pages(ids, PAGE))
            transfers = [engine.submit_write_pages(source.pages(ids, PAGE), remote.pages(ids, PAGE)) for _ in range(8)]
            await service.reset()
            began = time.perf_counter()
            target.signal(number)
            with pytest.raises(PeerLostError):
                for transfer in transfers:
                    await transfer
                while True:  # on shm the memory exists until the loss is detected
                    await engine.write_pages(source.pages(ids, PAGE), remote.pages(ids, PAGE))
            assert time.perf_counter() - began < 2
            await service.check()
            for transfer in transfers:
                with contextlib.suppress(PeerLostError):
                    await transfer
        await source.aclose()
        assert fds() <= level
        assert handles(engine) <= open_handles


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_restarted_peer_is_another_incarnation(backend: str) -> None:
    async with TransferEngine(backend=backend) as engine:
        source = await engine.register(engine.allocate(PAGE))
        with child("target", backend, PAGE) as target:
            old = await target.remote()
            await engine.write(source[:], old[:])
        with child("target", backend, PAGE) as target:
            new = await target.remote()
            await engine.write(source[:], new[:])
            with pytest.raises(PeerLostError):
                await engine.write(source[:], old[:])
            await engine.write(source[:], new[:])
            target.send("2")
            assert (await target.receive())["value"] == 2
            target.send("quit")
            target.process.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_peer_with_a_busy_loop_is_not_lost(backend: str) -> None:
    async with TransferEngine(backend=backend) as engine:
        source = await engine.register(engine.allocate(PAGE))
        with child("target", backend, PAGE) as target:
            remote = await target.remote()
            await engine.write(source[:], remote[:])
            target.send("busy 4")  # more than twice the liveness timeout
            assert (await target.receive())["busy"]
            with anyio.move_on_after(3.5):
                while True:
                    await engine.write(source[:], remote[:])
                    await anyio.sleep(0.05)  # time is under test: some writes in every liveness timeout
            assert not (await target.receive())["busy"]
            await engine.write(source[:], remote[:])
            target.send("3")
            assert (await target.receive())["value"] >= 3
            target.send("quit")
            target.process.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_peer_that_was_stopped_and_continued_can_be_reached_again(backend: str) -> None:
    async with TransferEngine(backend=backend) as engine:
        source = await engine.register(engine.allocate(PAGE))
        with child("target", backend, PAGE) as target:
            remote = await target.remote()
            counter = engine.counter(sources=[remote])
            await engine.write(source[:], remote[:])
            target.signal(signal.SIGSTOP)
            with pytest.raises(PeerLostError, match="silent"):
                await counter.wait()
            target.signal(signal.SIGCONT)
            await engine.write(source[:], remote[:])
            target.send("2")
            assert (await target.receive())["value"] == 2
            target.send("quit")
            target.process.wait()
