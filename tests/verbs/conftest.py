"""Cables between Soft-RoCE devices that tests may cut: they run in the virtual machine of ``tests/vm`` alone."""

from __future__ import annotations

import pathlib
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES = pathlib.Path("/sys/class/infiniband")


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
        subprocess.run(["/usr/sbin/ip", "-n", "switch", "link", "set", port, state], check=True)


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
