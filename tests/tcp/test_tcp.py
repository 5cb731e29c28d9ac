"""What the kit cannot ask of tcp: strangers at its socket, peers that take nothing, and its options.

The domain without the core, and what it does with malformed frames, is in ``tests/native/tcp_test.cpp``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread
import pytest

from aio_transfer import PeerLostError, ProviderError, RemoteRegion, TransferEngine
from aio_transfer.driver.backend_registry import OpenDriver, automatic, choose, load, names
from aio_transfer.driver.protocol import Capabilities
from aio_transfer.errors import BackendUnavailableError, UsageError
from aio_transfer.topology.identity import HOST_IDENTITY_NBYTES
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_transfer.driver.protocol import Driver

CHILD = pathlib.Path(__file__).parents[1] / "processes" / "child.py"
MOST_VISITORS = 256
pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def test_it_is_built_in() -> None:
    assert "tcp" in names()
    assert load("tcp") in automatic()


@pytest.mark.parametrize(("preference", "taken"), [(50, "tcp"), (200, "libfabric")])
def test_it_goes_before_libfabric_without_a_device(preference: int, taken: str) -> None:
    preferences = {"libfabric": preference, "tcp": 100}
    opened = {
        name: OpenDriver(
            name,
            cast("Driver", None),
            Capabilities(backend=name, provider="any", rails=("0",), max_piece_nbytes=1, preference=preference),
        )
        for name, preference in preferences.items()
    }
    one: dict[str, Any] = {"incarnation": 1, "pid": 7, "label": "far", "tcp_host": "10.0.0.1", "tcp_port": 7}
    peer = PeerInfo(host=bytes(HOST_IDENTITY_NBYTES), backends=dict.fromkeys(opened, "any"), **one)
    assert choose(opened, peer, same_host=False).name == taken
    del opened["tcp"]
    assert choose(opened, peer, same_host=False).name == "libfabric"


@pytest.mark.parametrize(
    "options",
    [
        {"address": "localhost"},
        {"address": "0.0.0.0"},  # noqa: S104 - refused
        {"address": "::"},
        {"rails": 0},
        {"rails": 9},
        {"rails": 1.5},
        {"post_deadline_s": "soon"},
        {"connect_s": -1},
        {"provider": "tcp"},
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        load("tcp").make_driver(options).open()


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"host": "127.0.0.2"}, "127.0.0.2:"),
        ({"host": "127.0.0.2", "options": {"tcp": {"address": "127.0.0.3"}}}, "127.0.0.3:"),
        ({"host": "0.0.0.0", "advertise": "127.0.0.4"}, "127.0.0.4:"),  # noqa: S104 - it is closed at once
        ({"host": "0.0.0.0"}, "127.0.0.1:"),  # noqa: S104 - it is closed at once
        ({"host": "localhost"}, "127.0.0.1:"),
    ],
    ids=str,
)
async def test_data_comes_where_the_engine_listens(settings: dict[str, object], where: str) -> None:
    async with TransferEngine(backend="tcp", **settings) as engine, TransferEngine(backend="tcp") as other:
        source, target = await engine.register(bytearray(8)), await other.register(bytearray(8))
        transfer = engine.submit_write(source[:], RemoteRegion.from_bytes(bytes(target.descriptor()))[:])
        await transfer
        assert transfer.path is not None
        assert transfer.path.rails[0].startswith(where)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(BackendUnavailableError, match=r"203\.0\.113\.7.*assign") as caught:
        load("tcp").make_driver({"address": "203.0.113.7"}).open()
    assert caught.value.hint == "ip address"


def test_rails() -> None:
    driver = load("tcp").make_driver({"address": "127.0.0.1,127.0.0.2", "rails": 3})
    rails = driver.open().rails
    driver.close()
    assert [rail.rpartition(":")[0] for rail in rails] == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]


def dial(driver: object) -> socket.socket:
    """Call the only rail of a driver."""
    host, _, port = driver._core.attributes()["rails"][0].rpartition(":")
    return socket.create_connection((host, int(port)))


async def is_ended(stranger: socket.socket) -> bool:
    stranger.setblocking(False)
    with anyio.move_on_after(5):
        while True:
            with contextlib.suppress(BlockingIOError):
                try:
                    return stranger.recv(1) == b""
                except ConnectionError:
                    return True
            await anyio.sleep(0.001)
    return False


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - paths of closed fds cannot be looked at


async def write_between(a: TransferEngine, b: TransferEngine) -> None:
    source, target = a.allocate(64), b.allocate(64)
    source[:] = 7
    here, there = await a.register(source), await b.register(target)
    counter = b.counter()
    await a.write(here[:], RemoteRegion.from_bytes(bytes(there.descriptor(counter)))[:])
    await counter.wait()
    assert (target == 7).all()


async def test_strangers_are_shown_out() -> None:
    async with TransferEngine(backend="tcp") as a, TransferEngine(backend="tcp") as b:
        driver = b._life.drivers["tcp"].driver
        for nbytes in (56, 4096):
            with dial(driver) as stranger:
                stranger.sendall(secrets.token_bytes(nbytes))
                assert await is_ended(stranger)
        with dial(driver) as stranger:
            stranger.sendall(b"ATC1" + bytes(52))
            assert await is_ended(stranger)
        await write_between(a, b)


async def test_the_silent_are_few_and_a_peer_gets_in() -> None:
    async with TransferEngine(backend="tcp") as a, TransferEngine(backend="tcp") as b:
        driver = b._life.drivers["tcp"].driver
        level = fds()
        with contextlib.ExitStack() as stack:
            strangers = [stack.enter_context(dial(driver)) for _ in range(MOST_VISITORS + 100)]
            for stranger in strangers[:100]:  # the first to come are the first to go
                assert await is_ended(stranger)
            await write_between(a, b)
            assert fds() - level <= len(strangers) + MOST_VISITORS + 64


@pytest.fixture
def target() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(CHILD), "target", "tcp", str(1 << 20)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.kill()


async def test_a_peer_that_stops_reading(target: subprocess.Popen[str]) -> None:
    options = {"tcp": {"post_deadline_s": 0.5}}
    async with TransferEngine(backend="tcp", options=options, liveness_timeout_s=30) as engine:
        line = await anyio.to_thread.run_sync(target.stdout.readline, abandon_on_cancel=True)
        remote = RemoteRegion.from_bytes(bytes.fromhex(json.loads(line)["descriptor"]))
        source = await engine.register(engine.allocate(1 << 20))
        await engine.write(source[:], remote[:])
        os.kill(target.pid, signal.SIGSTOP)
        # It takes effect as each thread runs next: until the last one stands still, whole writes may yet be read.
        await anyio.to_thread.run_sync(os.waitid, os.P_PID, target.pid, os.WSTOPPED, abandon_on_cancel=True)
        transfers = [engine.submit_write(source[:], remote[:]) for _ in range(64)]
        with anyio.fail_after(10):
            for transfer in transfers:
                with pytest.raises((ProviderError, PeerLostError), match=r"no byte has moved for 0\.5"):
                    await transfer
        await source.aclose()
