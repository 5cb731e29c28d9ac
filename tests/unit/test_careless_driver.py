"""A driver that raises errors it must not raise: every wait ends all the same, with a typed error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aio_transfer import (
    ClosedError,
    ProviderError,
    RemoteRegion,
    TransferAbortedError,
    TransferEngine,
    UnsupportedError,
)
from aio_transfer.backends.native import NativeDriver
from aio_transfer.driver import Backend, backend_registry
from aio_transfer.errors import PeerLostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_transfer.driver.protocol import Endpoint
    from aio_transfer.driver.records import PeerNumber

pytestmark = pytest.mark.anyio
CARELESS: set[str] = set()


class Careless(NativeDriver):
    def __init__(self) -> None:
        super().__init__("shm")

    def __getattribute__(self, name: str) -> Any:
        if name in CARELESS:
            raise OSError(f"from a careless driver's {name}")
        return super().__getattribute__(name)


@pytest.fixture(autouse=True)
def _careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(backend_registry.LOADED, "careless", Backend(name="careless", create=Careless))
    yield
    CARELESS.clear()


@pytest.mark.parametrize(
    ("method", "error"), [("post", ProviderError), ("register", ProviderError), ("connect", ProviderError)]
)
async def test_write_ends(method: str, error: type[Exception]) -> None:
    async with TransferEngine(backend="careless") as a, TransferEngine(backend="careless") as b:
        source = await a.register(a.allocate(64))
        target = await b.register(b.allocate(64))
        remote = RemoteRegion.from_bytes(bytes(target.descriptor()))
        CARELESS.add(method)
        with anyio.fail_after(5), pytest.raises(error, match=f"careless driver's {method}"):
            await a.write(source[:], remote[:])
        assert source.leases == 0
        CARELESS.clear()
        with anyio.fail_after(5):
            await a.write(source[:], remote[:])  # it was but once


@pytest.mark.parametrize("method", ["disconnect", "deregister"])
async def test_peer_ends(method: str) -> None:
    with anyio.fail_after(10):
        async with TransferEngine(backend="careless") as a, TransferEngine(backend="careless") as b:
            source = await a.register(a.allocate(64))
            target = await b.register(b.allocate(64))
            await a.write(source[:], RemoteRegion.from_bytes(bytes(target.descriptor()))[:])
            CARELESS.add(method)
            await a.disconnect(b.address)
            CARELESS.clear()


async def test_drain_closes_the_engine() -> None:
    async with TransferEngine(backend="careless", grace_s=0.1) as a, TransferEngine(backend="shm") as b:
        counter = a.counter()
        waits: list[BaseException] = []

        async def wait() -> None:
            try:
                await counter.wait()
            except (ClosedError, PeerLostError, TransferAbortedError) as error:
                waits.append(error)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(0.01)
                CARELESS.add("drain")
                (region,) = [await a.register(a.allocate(64))]
                tasks.start_soon(region.aclose)
                await b.__aexit__(None, None, None)
        assert len(waits) == 1
        with pytest.raises(ClosedError):
            a.counter()


class Halfway(Careless):
    """One of its connections fails when a part of it is made, as when the second of two rails refuses."""

    left = 0

    def connect(self, peer: PeerNumber, remote: Endpoint | None) -> Endpoint:
        end = super().connect(peer, remote)
        Halfway.left -= 1
        if Halfway.left == 0:
            raise OSError("no second rail")
        return end


@pytest.mark.parametrize("call", [1, 2, 3, 4], ids=["offer", "answer", "join the caller", "join"])
async def test_half_made_connections_are_given_back(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend_registry.LOADED, "careless", Backend(name="careless", create=Halfway))
    with anyio.fail_after(10):
        async with TransferEngine(backend="careless") as a, TransferEngine(backend="careless") as b:
            Halfway.left = call
            with pytest.raises((ProviderError, PeerLostError, UnsupportedError)):
                await a.connect(b.address)
            while any(one.statistics().drivers["careless"]["handles"] for one in (a, b)):  # noqa: ASYNC110 - no event
                await anyio.sleep(0.01)
            await a.connect(b.address)


async def test_a_wait_that_cannot_be_armed_leaves_no_waiter() -> None:
    async with TransferEngine(backend="careless") as a:
        counter = a.counter()
        CARELESS.add("_core")  # of the native driver's `expect`, which the counters have looked up already
        with anyio.fail_after(5), pytest.raises(OSError, match="careless driver's _core"):
            await counter.wait()
        CARELESS.clear()
        assert counter.waiting == 0
