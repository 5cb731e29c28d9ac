"""A third party's backend in pure Python: found by its entry point, small, and tested by the whole kit."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import tokenize
import tomllib
from typing import TYPE_CHECKING

import anyio
import pytest

from aio_transfer import BackendUnavailableError, PeerLostError, RemoteRegion, TransferEngine
from aio_transfer.driver.backend_registry import LOADED, load, names
from aio_transfer.driver.protocol import LocalMemory, RemoteMemory
from aio_transfer.driver.records import PIECE_STRUCT, RUN_STRUCT, Access, EventKind, Op, Status
from aio_transfer.testing import RULES, Spec, check_backend, select, until
from aio_transfer.testing.plugin import contract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "third_party"
CHILD = pathlib.Path(__file__).parents[1] / "processes" / "child.py"
MODULES = ("sockets_backend", "wrong_backend")
OPTIONAL = pathlib.Path(__file__).with_name("optional_backend.py")
SPEC = Spec(backend="sockets", same_host=True)
ELSEWHERE = ("writes", "reads", "closing", "pages_never_ahead", "close_again_and_again", "cancel_in_flight")
PAGE = 64 << 10


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Install the example as pip would: its modules, and a dist-info folder with its entry points."""
    site = tmp_path_factory.mktemp("site-packages")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["aio_transfer.backends"]
    points |= {
        "wrong": "wrong_backend:BACKEND",
        "optional": "optional_backend:BACKEND",
        "lost": "no_such_module:BACKEND",
    }
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata)
    lines = [f"{name} = {where}" for name, where in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[aio_transfer.backends]", *lines]))
    for file in (*(EXAMPLE / f"{name}.py" for name in MODULES), OPTIONAL):
        shutil.copy(file, site)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    yield site
    sys.path.remove(str(site))
    for name in (*MODULES, OPTIONAL.stem):
        sys.modules.pop(name, None)
    for name in points:
        LOADED.pop(name, None)


def test_it_is_found() -> None:
    assert "sockets" in names()
    found = importlib.metadata.entry_points(group="aio_transfer.backends", name="sockets")
    assert [point.value for point in found] == ["sockets_backend:BACKEND"]
    assert load("sockets").create.__name__ == "SocketsDriver"


def test_an_entry_point_that_leads_nowhere() -> None:
    assert "lost" in names()
    with pytest.raises(BackendUnavailableError, match="cannot import no_such_module:BACKEND"):
        load("lost")


def test_it_is_small() -> None:
    """Blank lines and comments do not count; what is left is code and docstrings."""
    text = (EXAMPLE / "sockets_backend.py").read_text()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    assert len(lines) <= 200
    assert max(map(len, text.splitlines())) <= 120


test_contract = contract(SPEC, loops=["asyncio"], schedules=20)
test_contract_elsewhere = contract(SPEC, only=ELSEWHERE, loops=["asyncio+uvloop", "trio"], schedules=10)
test_contract_of_optional_methods = contract(
    Spec(backend="optional", same_host=True),
    Spec(backend="optional", options={"progress": "spin"}, same_host=True, name="optional-spin"),
    only=("optional_methods", "scatter", "waits"),
    loops=["asyncio"],
    schedules=10,
)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_engine_uses_optional_methods() -> None:
    spec = Spec(backend="optional", same_host=True)
    load("optional")
    driver = sys.modules["optional_backend"].OptionalDriver
    assert not select("optional_methods")[0].missing(spec)
    before = driver.calls
    report = await check_backend(spec, only="scatter_prepared")
    report.raise_for_failures()
    assert driver.calls > before


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_wrong_one_is_caught() -> None:
    ahead = ("write_payload_before_count", "pages_never_ahead")
    report = await check_backend(Spec(backend="wrong", same_host=True), only=[*ahead, "write_counts_once"])
    assert {result.check.name: result.outcome for result in report.results} == {
        **dict.fromkeys(ahead, "failed"),
        "write_counts_once": "passed",
    }
    for result in report.failures:
        assert result.reason.startswith(f"rule 2 ({RULES['rule 2']}) is broken on wrong by")


# ---------------------------------------------------------------------------------------- what the kit cannot ask for


class Side:
    """One driver, without an engine."""

    def __init__(self) -> None:
        self.driver = load("sockets").make_driver({})
        self.driver.open()
        self.heard: list[tuple[int, int, int, int, bytes]] = []

    def hear(self, kind: EventKind, number: int) -> tuple[int, int, int, int, bytes]:
        """Wait for an event, and keep the others."""
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            self.heard += self.driver.drain(64)
            for event in self.heard:
                if event[:2] == (kind, number):
                    self.heard.remove(event)
                    return event
            time.sleep(0.001)
        raise AssertionError(f"no {kind!r} of {number}: {self.heard}")

    def post(self, number: int, op: Op, here: Any, nbytes: int, counter: int | None = None) -> None:
        """Post one piece with region 7 of peer 1, or only a count."""
        count, region = ((0, 0), 7) if counter is None else ((counter, 1), 0)
        piece = PIECE_STRUCT.pack(ctypes.addressof(here), 0, nbytes, *count)
        assert not self.driver.post(number, RUN_STRUCT.pack(1, 0, op, 0, region, 0, 1, 0), piece)


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    """Two drivers that are joined, each as the other's peer 1."""
    one, other = Side(), Side()
    first, second = one.driver.connect(1, None), other.driver.connect(1, None)
    one.driver.connect(1, second)
    other.driver.connect(1, first)
    yield one, other
    one.driver.close()
    other.driver.close()


def give(owner: Side, user: Side, memory: Any, access: Access = Access.REMOTE_READ | Access.REMOTE_WRITE) -> None:
    """Register memory as region 3 of its owner, which is region 7 of its user."""
    keys = owner.driver.register(3, LocalMemory(addr=ctypes.addressof(memory), nbytes=len(memory), access=access))
    user.driver.register(7, RemoteMemory(peer=1, nbytes=len(memory), keys=keys))


def test_forgotten_counters_drop_what_is_late(sides: tuple[Side, Side]) -> None:
    one, other = sides
    empty = (ctypes.c_char * 1)()
    private, well_known = 1 << 23 | 5, 5
    for number, counter in enumerate((private, well_known), 1):
        other.driver.expect(counter, 0)
        other.driver.expect(counter, -1)
        one.post(number, Op.WRITE, empty, 0, counter)
        assert one.hear(EventKind.TRANSFER, number)[2] == Status.OK
    assert other.driver.statistics()["counts"] == 1, "only the well-known one is kept from first sight"
    assert other.driver.expect(well_known, 0) == 1
    assert other.driver.expect(private, 0) == 0


@pytest.mark.parametrize("op", Op)
def test_the_target_checks_access_and_bounds(sides: tuple[Side, Side], op: Op) -> None:
    one, other = sides
    here, there = (ctypes.c_char * 64)(*b"h" * 64), (ctypes.c_char * 32)(*b"t" * 32)
    give(other, one, there, Access.REMOTE_READ if op is Op.WRITE else Access.REMOTE_WRITE)
    one.post(1, op, here, 32)
    assert one.hear(EventKind.TRANSFER, 1)[2] == Status.PROVIDER
    other.driver.deregister(3)
    other.hear(EventKind.RELEASED, 3)
    one.post(2, op, here, 32)
    assert one.hear(EventKind.TRANSFER, 2)[2] == Status.STALE_REGION
    give(other, one, there)
    one.post(3, op, here, 33)
    assert one.hear(EventKind.TRANSFER, 3)[2] == Status.PROVIDER
    assert (here.raw, there.raw) == (b"h" * 64, b"t" * 32)


def test_a_peer_that_never_answers(sides: tuple[Side, Side]) -> None:
    """Neither ending its connection nor closing waits for it."""
    one, _ = sides
    silent, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = one.driver.connect(2, None)
    one.driver.connect(2, type(end)(blob=b"", fds=(far.fileno(),)))
    one.driver.register(8, RemoteMemory(peer=2, nbytes=1 << 20, keys=bytes(12)))
    memory = (ctypes.c_char * (1 << 20))()
    piece = PIECE_STRUCT.pack(ctypes.addressof(memory), 0, 1 << 20, 0, 0)
    for number in (1, 2):
        one.driver.post(number, RUN_STRUCT.pack(2, 0, Op.WRITE, 0, 8, 0, 1, 0), piece)
    began = time.monotonic()
    one.driver.disconnect(2, lost=True)
    assert [one.hear(EventKind.TRANSFER, number)[2] for number in (1, 2)] == [Status.PEER_LOST] * 2
    one.hear(EventKind.FENCED, 2)
    assert time.monotonic() - began < 1
    with pytest.raises(BrokenPipeError):
        silent.send(bytes(64))
    silent.close()
    far.close()


def test_what_was_sent_before_the_end_is_applied(sides: tuple[Side, Side]) -> None:
    """A frame that has come when its sender is gone still counts, before the fence says that nothing more will."""
    one, _ = sides
    memory = (ctypes.c_char * 8)()
    key = one.driver.register(4, LocalMemory(addr=ctypes.addressof(memory), nbytes=8, access=Access.REMOTE_WRITE))
    asking, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    frame = sys.modules["sockets_backend"].FRAME
    asking.send(frame.pack(Op.WRITE, 1, 9, key, 0, 8) + b"last bit")
    asking.send(b"short")  # is refused, and harms nobody
    asking.close()
    end = one.driver.connect(2, None)
    one.driver.connect(2, type(end)(blob=b"", fds=(far.fileno(),)))
    far.close()
    one.driver.disconnect(2, lost=False)
    one.hear(EventKind.FENCED, 2)
    assert memory.raw == b"last bit"
    assert one.driver.expect(9, 0) == 1


def test_sockets_of_an_application_with_a_default_timeout() -> None:
    socket.setdefaulttimeout(0.05)
    try:
        one, other = Side(), Side()
        first, second = one.driver.connect(1, None), other.driver.connect(1, None)
        one.driver.connect(1, second)
        other.driver.connect(1, first)
        time.sleep(0.2)
        here, there = (ctypes.c_char * 8)(*b"8 bytes!"), (ctypes.c_char * 8)()
        give(other, one, there)
        one.post(1, Op.WRITE, here, 8)
        assert one.hear(EventKind.TRANSFER, 1)[2] == Status.OK
        assert there.raw == b"8 bytes!"
        one.driver.close()
        other.driver.close()
    finally:
        socket.setdefaulttimeout(None)


@pytest.fixture
def start(site: pathlib.Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start another process that has the example installed too."""
    started = []

    def start(role: str, nbytes: int) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            [sys.executable, str(CHILD), role, "sockets", str(nbytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_another_process_dies(start: Callable[..., subprocess.Popen[str]], number: int) -> None:
    """In the middle of pages, dead or frozen: the sender is told, and nothing of the peer is kept."""
    nbytes = 64 << 20
    target = start("target", nbytes)
    descriptor = json.loads(await anyio.to_thread.run_sync(target.stdout.readline))["descriptor"]
    remote = RemoteRegion.from_bytes(bytes.fromhex(descriptor))
    async with TransferEngine(backend="sockets") as engine:
        source = await engine.register(engine.allocate(nbytes))
        pages = range(nbytes // PAGE)
        await engine.write_pages(source.pages(pages, PAGE), remote.pages(pages, PAGE))
        transfers = [engine.submit_write_pages(source.pages(pages, PAGE), remote.pages(pages, PAGE)) for _ in range(20)]
        target.send_signal(number)
        with pytest.raises(PeerLostError), anyio.fail_after(3):
            for transfer in transfers:
                await transfer
        await source.aclose()
        await until(lambda: not engine.statistics().drivers["sockets"]["handles"], "it keeps handles of the dead peer")
