"""Soft-RoCE: two engines on virtual cables, with rails, cut cables, refused accesses and removed ports."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

from aio_transfer import AioTransferError, PeerLostError, RemoteRegion, StaleRegionError, TransferEngine
from aio_transfer.errors import BackendUnavailableError, UnsupportedError
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Cables, Removal

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.usefixtures("cables")]

LEFT, RIGHT = "rxe_left0", "rxe_right0"
LEFTS, RIGHTS = "rxe_left0,rxe_left1", "rxe_right0,rxe_right1"
PAGE = 4096
SHORT = {"timeout": 14, "port_down_s": 0.5}
"""A packet is given up after 0.5 to 2 s, so that a test of that does not take long."""
LIMITED = """
import anyio
from aio_transfer import AioTransferError, TransferEngine

async def main():
    async with TransferEngine(backend="verbs", options={"verbs": {"devices": "rxe_left0"}}) as engine:
        for nbytes in (64 << 20, 4096):
            try:
                region = await engine.register(engine.allocate(nbytes))
            except AioTransferError as error:
                print(type(error).__name__, error)
            else:
                print("registered", region.nbytes)

try:
    anyio.run(main)
except AioTransferError as error:
    print(type(error).__name__, error)
"""
"""What a process says that may lock little memory."""


@contextlib.asynccontextmanager
async def pair(left: str, right: str, **options: Any) -> AsyncIterator[tuple[TransferEngine, TransferEngine]]:
    def make(devices: str) -> TransferEngine:
        # A machine that is emulated may not run a thread for longer than the default.
        return TransferEngine(
            backend="verbs", options={"verbs": {"devices": devices, **options}}, liveness_timeout_s=30
        )

    async with make(left) as a, make(right) as b:
        yield a, b


class Target:
    """Memory of one engine that the other writes, with a counter."""

    def __init__(self, engine: TransferEngine, nbytes: int) -> None:
        self.memory = engine.allocate(nbytes)
        self.memory[:] = 0
        self.counter = engine.counter()
        self.engine = engine
        self.region: Any = None

    async def remote(self) -> RemoteRegion:
        self.region = await self.engine.register(self.memory)
        return RemoteRegion(self.region.descriptor(counter=self.counter))


async def source(engine: TransferEngine, nbytes: int) -> tuple[np.ndarray, Any]:
    memory = engine.allocate(nbytes)
    memory.view(np.uint32)[:] = np.random.default_rng(7).integers(0, 1 << 32, nbytes // 4, dtype=np.uint32)
    return memory, await engine.register(memory)


async def works(a: TransferEngine, b: TransferEngine, nbytes: int = 1 << 16) -> None:
    """One write of new memory to new memory, one count, the bytes."""
    target = Target(b, nbytes)
    memory, region = await source(a, nbytes)
    remote = await target.remote()
    with anyio.fail_after(patient(3)):
        await a.write(region[:], remote[:])
        await target.counter.wait()
    assert target.counter.value == 1
    np.testing.assert_array_equal(target.memory, memory)
    await region.aclose()
    await target.region.aclose()


async def works_in_the_end(a: TransferEngine, b: TransferEngine) -> None:
    """Repeat until a new connection succeeds: a link takes time to recover."""
    deadline = time.monotonic() + patient(3)
    while True:
        try:
            return await works(a, b)
        except AioTransferError:
            if time.monotonic() > deadline:
                raise
            await anyio.sleep(0.2)  # no event tells when the link works again


@pytest.mark.parametrize(
    ("left", "right"), [(LEFTS, RIGHTS), (LEFTS, RIGHT), (LEFT, RIGHTS)], ids=["two-two", "two-one", "one-two"]
)
async def test_64_mib_are_one_count_on_any_rails(left: str, right: str) -> None:
    nbytes = 64 << 20
    async with pair(left, right) as (a, b):
        target = Target(b, nbytes)
        memory, region = await source(a, nbytes)
        remote = await target.remote()
        with anyio.fail_after(patient(6)):
            await a.write(region[:], remote[:])
            await target.counter.wait()
        np.testing.assert_array_equal(target.memory, memory)
        with anyio.fail_after(patient(6)):
            memory[:] = 0
            await a.read(region[:], remote[:])
        np.testing.assert_array_equal(target.memory, memory)
        assert target.counter.value == 1


async def test_10_000_pages_are_10_000_counts() -> None:
    async with pair(LEFTS, RIGHTS) as (a, b):
        target = Target(b, 10_000 * PAGE)
        memory, region = await source(a, 10_000 * PAGE)
        remote = await target.remote()
        pages = np.random.default_rng(3).permutation(10_000)
        with anyio.fail_after(patient(10)):
            await a.write_pages(region.pages(pages, PAGE), remote.pages(pages, PAGE))
            await target.counter.wait(10_000)
        assert target.counter.value == 10_000
        np.testing.assert_array_equal(target.memory, memory)


async def test_a_cut_cable_ends_10_000_pages_with_an_error(cables: Cables) -> None:
    async with pair(LEFT, RIGHT, **SHORT) as (a, b):
        target = Target(b, 10_000 * PAGE)
        _, region = await source(a, 10_000 * PAGE)
        remote = await target.remote()
        pages = np.arange(10_000)
        await a.connect(b.address)
        transfer = a.submit_write_pages(region.pages(pages, PAGE), remote.pages(pages, PAGE))
        with anyio.fail_after(patient(6)):
            await target.counter.wait(500)  # in the middle of it
            cables.cut("left0")
            with pytest.raises(PeerLostError):
                await transfer
            with pytest.raises(PeerLostError):
                await target.counter.wait(10_000)
        assert 500 <= target.counter.value < 10_000
        with anyio.fail_after(patient(3)):
            await region.aclose()
            await target.region.aclose()
        cables.mend("left0")
        await works_in_the_end(a, b)


async def test_one_of_two_cables_cut_ends_a_write_with_an_error(cables: Cables) -> None:
    nbytes = 64 << 20
    async with pair(LEFTS, RIGHTS, **SHORT) as (a, b):
        target = Target(b, nbytes)
        _, region = await source(a, nbytes)
        remote = await target.remote()
        await works(a, b)
        transfer = a.submit_write(region[:], remote[:])
        cables.cut("left1")
        with anyio.fail_after(patient(6)), pytest.raises(PeerLostError):
            await transfer
        with pytest.raises(PeerLostError):
            await target.counter.wait()
        assert target.counter.value == 0
        cables.mend("left1")
        await works_in_the_end(a, b)


async def test_an_idle_connection_notices_a_cut_cable(cables: Cables) -> None:
    async with pair(LEFT, RIGHT, **SHORT) as (a, b):
        target = Target(b, PAGE)
        remote = await target.remote()
        _, region = await source(a, PAGE)
        await a.write(region[:], remote[:])
        await target.counter.wait()
        waiting = b.counter(sources=[a.address])
        with anyio.fail_after(patient(3)):
            cables.cut("left0")
            with pytest.raises(PeerLostError):
                await waiting.wait()
        cables.mend("left0")
        await works_in_the_end(a, b)


async def test_a_cable_that_is_cut_only_briefly_changes_nothing(cables: Cables) -> None:
    async with pair(LEFT, RIGHT) as (a, b):
        target = Target(b, 4 << 20)
        memory, region = await source(a, 4 << 20)
        remote = await target.remote()
        await works(a, b)
        transfer = a.submit_write(region[:], remote[:])
        cables.cut("left0")
        await anyio.sleep(0.2)  # time is under test: shorter than the transport's timeouts
        cables.mend("left0")
        with anyio.fail_after(patient(6)):
            await transfer
            await target.counter.wait()
        np.testing.assert_array_equal(target.memory, memory)


async def test_closing_a_region_under_traffic_ends_no_other_transfer() -> None:
    async with pair(LEFT, RIGHT) as (a, b):
        doomed, other = Target(b, 8 << 20), Target(b, 8 << 20)
        _, region = await source(a, 8 << 20)
        first, second = await doomed.remote(), await other.remote()
        pages = np.arange(2048)
        await works(a, b)
        with anyio.fail_after(patient(6)):
            for _ in range(3):
                failing = a.submit_write_pages(region.pages(pages, PAGE), first.pages(pages, PAGE))
                fine = a.submit_write_pages(region.pages(pages, PAGE), second.pages(pages, PAGE))
                await other.counter.wait(100)
                if doomed.region._lease.state.value == "open":
                    await doomed.region.aclose()
                with contextlib.suppress(StaleRegionError):
                    await failing
                await fine
                await other.counter.wait(2048 - 100)
        assert other.counter.value == 3 * 2048
        with pytest.raises(StaleRegionError):
            await a.write(region[:8], first[:8])


async def test_ends_that_no_cable_joins_are_reported() -> None:
    async with pair("rxe_left0", "rxe_lo") as (a, b):
        target = Target(b, 64)
        _, region = await source(a, 64)
        remote = await target.remote()
        with anyio.fail_after(patient(3)), pytest.raises(UnsupportedError, match=r"RTR|no address"):
            await a.write(region[:], remote[:])


async def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendUnavailableError, match="no device mlx5_7"):
        async with TransferEngine(backend="verbs", options={"verbs": {"devices": "mlx5_7"}}):
            pass


async def test_a_port_that_is_down_is_refused(cables: Cables) -> None:
    cables.cut("right1")
    with anyio.fail_after(patient(3)), pytest.raises(BackendUnavailableError, match="its port is down"):
        while True:  # the event takes a moment
            async with TransferEngine(backend="verbs", options={"verbs": {"devices": "rxe_right1"}}):
                await anyio.sleep(0.1)  # the kernel reports the port's state some time later


@pytest.mark.parametrize("what", ["device", "interface"])
async def test_removing_a_port_under_load_ends_its_transfers(removal: Removal, what: str) -> None:
    port = "left0" if what == "device" else "left1"
    ends = f"rxe_{port}", f"rxe_right{port[-1]}"
    async with pair(*ends, **SHORT) as (a, b):
        target = Target(b, 10_000 * PAGE)
        memory, region = await source(a, 10_000 * PAGE)
        remote = await target.remote()
        pages = np.arange(10_000)
        await a.connect(b.address)
        transfer = a.submit_write_pages(region.pages(pages, PAGE), remote.pages(pages, PAGE))
        with anyio.fail_after(patient(10)):
            await target.counter.wait(500)
            removed = removal.begin(what, port)
            if what == "device":  # the kernel waits for us, and tells us nothing
                await transfer
                await target.counter.wait(9_500)
                np.testing.assert_array_equal(target.memory, memory)
                await works(a, b)
                assert removed.poll() is None
            else:
                with pytest.raises(PeerLostError):
                    await transfer
                with pytest.raises(PeerLostError):
                    await target.counter.wait(9_500)
                assert target.counter.value < 10_000
    await anyio.to_thread.run_sync(removed.wait, patient(3))  # nobody has it open any more
    with anyio.fail_after(patient(3)), pytest.raises(BackendUnavailableError, match=f"no device rxe_{port}"):
        while True:  # an interface may be gone before its device
            async with TransferEngine(backend="verbs", options={"verbs": {"devices": f"rxe_{port}"}}):
                await anyio.sleep(0.1)  # the kernel reports the port's state some time later
    removal.undo()
    async with pair(*ends) as (a, b):
        await works_in_the_end(a, b)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (64 << 10, [r"BackendUnavailableError .*beyond the limit of locked memory\?.*ulimit -l unlimited"]),
        (16 << 20, [r"ProviderError .*67108864 bytes.*beyond the limit of locked memory\?", "registered 4096"]),
    ],
    ids=["for-the-engine", "for-a-region"],
)
def test_a_low_memlock_limit_is_reported_with_its_fix(limit: int, said: list[str]) -> None:
    # Root has no such limit, but for one that may not lock memory as it likes.
    limited = ["setpriv", "--bounding-set=-ipc_lock", "prlimit", f"--memlock={limit}", sys.executable, "-c", LIMITED]
    run = subprocess.run(limited, check=True, capture_output=True, text=True, timeout=200)
    lines = run.stdout.splitlines()
    assert len(lines) == len(said), run.stderr
    for line, pattern in zip(lines, said, strict=True):
        assert re.fullmatch(pattern + ".*", line), line
