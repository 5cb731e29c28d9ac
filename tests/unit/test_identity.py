"""One host has one name; every life of every engine has its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aio_transfer.topology import identity
from aio_transfer.topology.identity import host_identity, new_incarnation, new_session


def test_processes_of_one_host_agree() -> None:
    code = "from aio_transfer.topology.identity import host_identity; print(host_identity().hex())"
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=root, text=True)
    assert found.stdout.strip() == host_identity().hex()
    assert len(host_identity()) == 32


@pytest.mark.parametrize("namespace", ["net", "pid"])
def test_another_namespace_is_another_host(monkeypatch: pytest.MonkeyPatch, namespace: str) -> None:
    real = os.readlink

    def readlink(path: str) -> str:
        return f"{namespace}:[1]" if path.endswith(f"/{namespace}") else real(path)

    monkeypatch.setattr(os, "readlink", readlink)
    assert identity.host_identity.__wrapped__() != host_identity()


def test_a_host_that_cannot_tell_equals_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_BOOT_ID", Path("/nonexistent"))
    assert identity.host_identity.__wrapped__() != identity.host_identity.__wrapped__()


def test_names_are_never_used_twice() -> None:
    assert len({new_incarnation() for _ in range(100)} | {new_session() for _ in range(100)}) == 200
    assert len(new_incarnation()) == len(new_session()) == 16
