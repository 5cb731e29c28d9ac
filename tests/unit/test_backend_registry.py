"""Backend registry: finding backends by scanning and by entry points, opening them, choosing one per peer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

import aio_transfer.backends
from aio_transfer import BackendUnavailableError, RemoteRegion, TransferEngine, UnsupportedError, UsageError
from aio_transfer.driver import Backend, Capabilities
from aio_transfer.driver.backend_registry import (
    LOADED,
    OpenDriver,
    automatic,
    available,
    choose,
    load,
    names,
    open_driver,
    open_drivers,
)
from aio_transfer.topology.identity import HOST_IDENTITY_NBYTES
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from aio_transfer.driver import Driver

TOY = """
from aio_transfer.backends.native import NativeDriver
from aio_transfer.driver import Backend, Option, OptionTable

class ToyDriver(NativeDriver):
    def __init__(self, *, size=1):
        super().__init__("shm")

BACKEND = Backend(
    name="toy",
    create=ToyDriver,
    options=OptionTable(Option("size", int, 1, "Of the toy.", minimum=1)),
    automatic=True,
)
"""


@pytest.fixture
def add_package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Add a folder beside those of the built-in backends, and touch nothing else."""
    monkeypatch.setattr(aio_transfer.backends, "__path__", [*aio_transfer.backends.__path__, str(tmp_path)])
    added: list[str] = []

    def add(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
        importlib.invalidate_caches()
        added.append(name)

    yield add
    for name in added:
        sys.modules.pop(f"aio_transfer.backends.{name}", None)
        LOADED.pop(name, None)


class Recording:
    """A driver that notes whether it is open."""

    opened: int = 0

    def __init__(self, *, fail: bool = False) -> None:
        self.fail = fail

    def open(self) -> Capabilities:
        if self.fail:
            raise BackendUnavailableError("second", "it fails on purpose")
        Recording.opened += 1
        return Capabilities(backend="first", provider="none", rails=(), max_piece_nbytes=1)

    def close(self) -> None:
        Recording.opened -= 1


def test_built_in_backends_are_found() -> None:
    assert names()[:6] == ("libfabric", "pyverbs", "shm", "sim", "tcp", "verbs")
    assert [backend.name for backend in automatic()] == ["libfabric", "shm", "tcp", "verbs"]
    assert all(load(name).name == name for name in names()[:6])


@pytest.mark.parametrize("name", ["nope", "", "..", "native", "core", "shm.options", "../shm", 5], ids=str)
def test_unknown_names_are_refused(name: Any) -> None:
    with pytest.raises(UsageError, match=r"there is no backend .*: there are libfabric, pyverbs, shm, sim, tcp, verbs"):
        load(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"there is no backend 'verb': .*; did you mean 'verbs'\?"):
        load("verb")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_new_backend_touches_its_own_folder_alone(add_package: Callable[[str, str], None]) -> None:
    add_package("toy", TOY)
    assert "toy" in names()
    assert load("toy") in automatic()
    assert "toy" in {report.backend for report in available() if report.usable}
    async with TransferEngine(backend="toy") as a, TransferEngine(options={"toy": {"size": 2}}) as b:
        source, target = await a.register(bytearray(b"a toy's bytes")), await b.register(bytearray(13))
        transfer = a.submit_write(source[:], RemoteRegion.from_bytes(bytes(target.descriptor()))[:])
        await transfer
        assert transfer.path is not None
        assert transfer.path.backend == "toy"
        assert b.statistics().drivers["toy"]["counts"] == 0
    with pytest.raises(UsageError, match="toy: option size is 0: allowed are 1 or more"):
        open_driver("toy", {"size": 0})


def test_a_built_in_backend_that_cannot_be_imported(add_package: Callable[[str, str], None]) -> None:
    add_package("lacking", "import no_such_module_at_all")
    assert "lacking" in names()
    assert "lacking" not in [backend.name for backend in automatic()]
    with pytest.raises(
        BackendUnavailableError, match=r"cannot import aio_transfer\.backends\.lacking: No module named"
    ):
        load("lacking")
    report = {report.backend: report for report in available()}["lacking"]
    assert not report.usable
    assert "no_such_module_at_all" in report.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("BACKEND = dict", "is no aio_transfer.driver.Backend"),
        (TOY.replace('name="toy"', 'name="other"'), "is a Backend with another name, 'other'"),
    ],
)
def test_a_package_that_declares_no_backend_of_its_name(
    add_package: Callable[[str, str], None], text: str, reason: str
) -> None:
    add_package("toy", text)
    with pytest.raises(BackendUnavailableError, match=reason):
        load("toy")


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("shm", {"shm": {"progres": "spin"}}, "shm: there is no option 'progres'"),
        ("shm", {"shm": {"progress": "spni"}}, "shm: option progress is spni"),
        ("shm", {"tcp": {"rails": 2}}, "there are options for 'tcp', but the backends asked for are shm"),
        (("shm", "tcp"), {"sim": {}}, "there are options for 'sim', but the backends asked for are shm, tcp"),
        ("shm", {"telegraph": {}}, "there is no backend 'telegraph'"),
        ("auto", {"sim": {"nics": 2}}, "options for 'sim', but the backends asked for are libfabric, shm, tcp, verbs"),
        ("auto", {"pyverbs": {}}, "options for 'pyverbs'"),
        ("auto", {"verbs": {"rails": 0}}, "verbs: option rails is 0: allowed are 1 … 64"),
        ("auto", {"verbz": {}}, r"there is no backend 'verbz': .*; did you mean 'verbs'"),
        (("shm", "auto"), {}, "there is no backend 'auto'"),
        ("", {}, "there is no backend ''"),
        ((), {}, "no backend is asked for: there are"),
    ],
    ids=str,
)
def test_engines_refuse_what_they_are_asked_for(backend: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_drivers(backend, options)


def test_auto_takes_options_of_backends_that_cannot_run() -> None:
    opened = open_drivers("auto", {"verbs": {"library": "/no/such/library"}, "libfabric": {"library": "/nor/this"}})
    for driver in opened.values():
        driver.driver.close()
    assert set(opened) == {"shm", "tcp"}


def test_options_are_checked_before_a_device_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOADED, "first", Backend(name="first", create=lambda: pytest.fail("it was opened")))
    with pytest.raises(UsageError, match="shm: option progress is spni"):
        open_drivers(("first", "shm"), {"shm": {"progress": "spni"}})


def test_drivers_are_closed_when_a_later_one_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOADED, "first", Backend(name="first", create=Recording))
    monkeypatch.setitem(LOADED, "second", Backend(name="second", create=lambda: Recording(fail=True)))
    with pytest.raises(BackendUnavailableError, match="it fails on purpose"):
        open_drivers(("first", "second"), {})
    assert Recording.opened == 0


def test_a_name_twice_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOADED, "first", Backend(name="first", create=Recording))
    (opened,) = open_drivers(("first", "first"), {}).values()
    assert Recording.opened == 1
    opened.driver.close()


def opened_with(**preferences: int) -> dict[str, OpenDriver]:
    return {
        name: OpenDriver(
            name,
            cast("Driver", None),
            Capabilities(
                backend=name,
                provider="any",
                rails=("0",),
                max_piece_nbytes=1,
                preference=preference,
                same_host=name == "near",
            ),
        )
        for name, preference in preferences.items()
    }


def peer_with(*backends: str, provider: str = "any") -> PeerInfo:
    one: dict[str, Any] = {"incarnation": 1, "pid": 7, "label": "far", "tcp_host": "10.0.0.1", "tcp_port": 7}
    return PeerInfo(host=bytes(HOST_IDENTITY_NBYTES), backends=dict.fromkeys(backends, provider), **one)


@pytest.mark.parametrize(
    ("theirs", "same_host", "taken"),
    [
        (("near", "fast", "slow", "mine"), True, "near"),
        (("near", "fast", "slow", "mine"), False, "fast"),
        (("slow", "mine"), False, "slow"),
        (("mine",), False, "mine"),
        (("mine", "worse"), False, "mine"),
    ],
    ids=str,
)
def test_the_preferred_driver_of_both_is_chosen(theirs: tuple[str, ...], same_host: bool, taken: str) -> None:
    opened = opened_with(worse=-1, mine=0, slow=100, near=400, fast=300)
    assert choose(opened, peer_with(*theirs), same_host=same_host).name == taken


def test_the_first_of_equals_is_chosen() -> None:
    assert choose(opened_with(a=0, b=0), peer_with("b", "a"), same_host=False).name == "a"
    assert choose(opened_with(b=0, a=0), peer_with("b", "a"), same_host=False).name == "b"


@pytest.mark.parametrize("theirs", [("other",), (), ("near",)], ids=str)
def test_no_common_driver(theirs: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedError, match=r"a path to far .* across hosts, has near/any, fast/any"):
        choose(opened_with(near=400, fast=300), peer_with(*theirs), same_host=False)


def test_another_provider_is_another_path() -> None:
    with pytest.raises(UnsupportedError, match="needs one of fast/other"):
        choose(opened_with(fast=300), peer_with("fast", provider="other"), same_host=True)


def test_preferences_of_built_in_backends() -> None:
    """Shared memory first; sockets of our own before libfabric's, which need more work per page."""
    found = {}
    for name in ("shm", "tcp", "sim", "libfabric"):
        try:
            opened = open_driver(name, {})
        except BackendUnavailableError:
            continue
        found[name] = opened.capabilities.preference
        opened.driver.close()
    expected = {"shm": 400, "tcp": 100, "sim": 0, "libfabric": 50}
    assert found == {name: expected[name] for name in found}
    assert {"shm", "tcp", "sim"} <= found.keys()


def test_a_built_in_backend_needs_neither_a_scan_nor_entry_points() -> None:
    code = (
        "import sys; from aio_transfer.driver.backend_registry import load; load('shm');"
        "print('importlib.metadata' in sys.modules, 'pkgutil' in sys.modules, 'difflib' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False", "False"]
