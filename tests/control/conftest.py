"""Event loops, connected pairs and credentials for the tests of the control plane's wire."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from aio_transfer.control.connection import FrameConnection
from aio_transfer.control.handshake import Credentials
from aio_transfer.topology.identity import host_identity, new_incarnation
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("asyncio", {"use_uvloop": False}),
    ("asyncio", {"use_uvloop": True}),
    ("trio", {}),
)


@pytest.fixture(params=LOOPS, ids=("asyncio", "asyncio+uvloop", "trio"))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run every test on every loop."""
    loop: tuple[str, dict[str, Any]] = request.param
    return loop


@pytest.fixture(scope="session", autouse=True)
def _warm_loops() -> None:
    """Let every loop make what it keeps for the life of the process (libuv's signal pipe)."""
    for name, options in LOOPS:
        anyio.run(anyio.lowlevel.checkpoint, backend=name, backend_options=options)


@pytest.fixture(autouse=True)
def no_fd_leaks(anyio_backend: tuple[str, dict[str, Any]]) -> Iterator[None]:
    """Fail a test that leaves a file descriptor open. The loop's own come and go inside."""
    del anyio_backend
    gc.collect()
    before = _open_fds()
    yield
    gc.collect()
    leaked = {fd: name for fd, name in _open_fds().items() if before.get(fd) != name}
    assert not leaked


@pytest.fixture(params=["unix", "tcp"])
def family(request: pytest.FixtureRequest) -> str:
    """Both kinds of socket a control connection runs over."""
    name: str = request.param
    return name


@pytest.fixture
def pair(family: str) -> Iterator[tuple[FrameConnection, FrameConnection]]:
    """Two ends of one connection."""
    left, right = (FrameConnection(sock) for sock in make_sockets(family))
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def unix_pair() -> Iterator[tuple[FrameConnection, FrameConnection]]:
    """Two ends of one connection that can pass file descriptors."""
    left, right = (FrameConnection(sock) for sock in make_sockets("unix"))
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def raw_pair(family: str) -> Iterator[tuple[FrameConnection, socket.socket]]:
    """Connect one end to the bare socket of a peer that may say anything."""
    ours, theirs = make_sockets(family)
    connection = FrameConnection(ours)
    with theirs:
        yield connection, theirs
    connection.close()


@pytest.fixture
def make_credentials() -> Callable[..., Credentials]:
    """Make what one engine brings to a handshake."""

    def make(secret: bytes | None = None, **changes: Any) -> Credentials:
        fields: dict[str, Any] = {
            "incarnation": new_incarnation(),
            "host": host_identity(),
            "label": f"test:{os.getpid()}",
            "pid": os.getpid(),
            "tcp_host": "127.0.0.1",
            "tcp_port": 1,
        }
        return Credentials(info=PeerInfo(**(fields | changes)), secret=secret)

    return make


def make_sockets(family: str) -> tuple[socket.socket, socket.socket]:
    """Connect two sockets; the second still blocks, which is what a scripted peer wants."""
    if family == "unix":
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname())
        right, _address = server.accept()
    return left, right


def _open_fds() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:
            continue  # the listing's own
    return found
