"""Fixtures for Soft-RoCE: removable devices and cables to cut, only in the virtual machine of ``tests/vm``."""

from __future__ import annotations

import pathlib
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES = pathlib.Path("/sys/class/infiniband")
PROGRAMS = {"PATH": "/usr/sbin:/usr/bin"}


class Cables:
    """The cables of ``tests/vm/guest/fabric``, each named after the port at its near end."""

    def __init__(self) -> None:
        self._cut: set[str] = set()

    def cut(self, port: str) -> None:
        """Unplug a cable at the switch: the port loses its carrier."""
        self._cut.add(port)
        self._set(port, "down")

    def mend(self, port: str) -> None:
        """Plug it in again."""
        self._set(port, "up")
        self._cut.discard(port)

    def mend_all(self) -> None:
        for port in tuple(self._cut):
            self.mend(port)

    @staticmethod
    def _set(port: str, state: str) -> None:
        _run(f"ip -n switch link set {port} {state}")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cables() -> Iterator[Cables]:
    if not (DEVICES / "rxe_left0").exists():
        pytest.skip("needs the Soft-RoCE devices of `python tests/vm`")
    cables = Cables()
    yield cables
    cables.mend_all()


class Removal:
    """A port of ``tests/vm/guest/fabric`` that goes while it is in use, and is made again at the end."""

    def __init__(self) -> None:
        self._gone: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, what: str, port: str) -> subprocess.Popen[bytes]:
        """Remove a port's device, or the interface below it. It ends when nobody has the device open any more."""
        command = ["rdma", "link", "delete", f"rxe_{port}"] if what == "device" else ["ip", "link", "delete", port]
        self._gone[port] = subprocess.Popen(command, env=PROGRAMS)
        return self._gone[port]

    def undo(self) -> None:
        for port, removal in self._gone.items():
            removal.wait(60)
            rail, number = f"rail{port[-1]}", 1 if port.startswith("left") else 2
            if not pathlib.Path("/sys/class/net", port).exists():
                _run(f"ip link add {port} mtu 9000 type veth peer name {port} mtu 9000 netns switch")
                _run(f"ip -n switch link set {port} master {rail} up")
                _run(f"ip address add 10.0.{port[-1]}.{number}/24 dev {port}")
                _run(f"ip link set {port} up")
            # An interface that goes takes its device along, a little later.
            if not (DEVICES / f"rxe_{port}").exists():
                _run(f"rdma link add rxe_{port} type rxe netdev {port}")
        self._gone.clear()


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, env=PROGRAMS)


@pytest.fixture
def removal(cables: Cables) -> Iterator[Removal]:
    removal = Removal()
    yield removal
    removal.undo()
