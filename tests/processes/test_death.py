"""kill -9 and SIGSTOP of the other process in the middle of 1 GiB of paged writes.

Every waiter gets PeerLostError within 2 s, a third peer is served throughout, fds and native handles return to their
level, and a process that is thawed writes nothing more into memory that was given away.
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
    """The other process, and the lines it says."""

    def __init__(self, role: str, backend: str, nbytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), role, backend, str(nbytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    async def hear(self) -> dict[str, object]:
        line = await anyio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
        return json.loads(line)

    def tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    async def remote(self) -> RemoteRegion:
        return RemoteRegion.from_bytes(bytes.fromhex(str((await self.hear())["descriptor"])))

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
    """How a third peer was served: the gaps between its writes, beside those of a process that only sleeps."""

    def __init__(self, metronome: Child) -> None:
        self.gaps: list[float] = []
        self._metronome = metronome
        self._last = time.perf_counter()

    def served(self) -> None:
        now = time.perf_counter()
        self.gaps.append(now - self._last)
        self._last = now

    async def reset(self) -> None:
        self._metronome.tell("reset")
        await self._metronome.hear()
        self.gaps.clear()
        self._last = time.perf_counter()  # what the write under way took before is judged by nobody's sleep

    async def check(self) -> None:
        """No pause above 50 ms but for what the machine itself took."""
        self._metronome.tell("tell")
        longest = float((await self._metronome.hear())["longest"])
        assert max(self.gaps) < 0.05 + longest, "the third peer had to wait"


@contextlib.asynccontextmanager
async def third_peer(engine: TransferEngine, backend: str) -> AsyncIterator[Service]:
    """Serve another peer all the while."""
    with child("target", backend, 1 << 20) as third, child("metronome", backend, 0) as metronome:
        service = Service(metronome)
        remote = await third.remote()
        source = await engine.register(engine.allocate(PAGE))

        async def serve() -> None:
            while True:
                await engine.write(source[:4096], remote[:4096])
                await anyio.sleep(0.001)
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
async def test_the_sender_dies(backend: str, number: int) -> None:
    async with TransferEngine(backend=backend) as engine, third_peer(engine, backend) as service:
        await anyio.to_thread.run_sync(time.perf_counter)  # its worker thread's fds belong to the level
        level, open_handles = fds(), handles(engine)
        memory = engine.allocate(GIB)
        region = await engine.register(memory)
        counter = engine.counter()
        with child("sender", backend, GIB) as sender:
            await sender.hear()
            sender.tell(bytes(region.descriptor(counter)).hex())
            sender.tell("forever")
            await sender.hear()  # a whole round: it is in the middle of a later one now
            arrived = counter.value
            await service.reset()
            began = time.perf_counter()
            sender.signal(number)
            with pytest.raises(PeerLostError, match=r"reset|silent"):
                await counter.wait(10**9)
            assert time.perf_counter() - began < 2
            assert counter.value >= arrived
            await service.check()

            given_away = None
            with anyio.move_on_after(1) as waited:
                await region.aclose()  # frozen inside a write it may be held: then it must not return
                given_away = memory
            if given_away is not None:
                given_away[:] = 99
            if number == signal.SIGSTOP:
                sender.signal(signal.SIGCONT)
                assert await anyio.to_thread.run_sync(sender.process.wait) != 0, "it learned that it was declared lost"
            if given_away is not None:
                assert (given_away == 99).all(), "a zombie wrote into memory that was given away"
            elif waited.cancelled_caught:
                await region.aclose()
        counter.close()
        del memory, given_away
        assert fds() <= level
        assert handles(engine) <= open_handles


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_the_target_dies(backend: str, number: int) -> None:
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
                while True:  # on shm the memory outlives its process for as long as nobody has noticed
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
async def test_a_peer_that_comes_back_is_another(backend: str) -> None:
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
            target.tell("2")
            assert (await target.hear())["value"] == 2
            target.tell("quit")
            target.process.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_busy_loop_is_not_a_dead_peer(backend: str) -> None:
    async with TransferEngine(backend=backend) as engine:
        source = await engine.register(engine.allocate(PAGE))
        with child("target", backend, PAGE) as target:
            remote = await target.remote()
            await engine.write(source[:], remote[:])
            target.tell("busy 4")  # more than twice the liveness timeout
            assert (await target.hear())["busy"]
            with anyio.move_on_after(3.5):
                while True:
                    await engine.write(source[:], remote[:])
                    await anyio.sleep(0.05)
            assert not (await target.hear())["busy"]
            await engine.write(source[:], remote[:])
            target.tell("3")
            assert (await target.hear())["value"] >= 3
            target.tell("quit")
            target.process.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_thawed_peer_can_be_reached_again(backend: str) -> None:
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
            target.tell("2")
            assert (await target.hear())["value"] == 2
            target.tell("quit")
            target.process.wait()
