"""The benchmark between two hosts, both of them this one: only connections join the two ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aio_transfer.bench.workers.remote_worker import parse_endpoint
from aio_transfer.driver.backend_registry import available
from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCH = [sys.executable, "-m", "aio_transfer", "bench"]
TINY = ["--backend", "libfabric", "--repeat", "2", "--sample", "0.002", "--json"]
FABRIC = next(report for report in available() if report.backend == "libfabric")
needs_fabric = pytest.mark.skipif(not FABRIC.usable, reason=FABRIC.reason)


@pytest.fixture
def listener() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with subprocess.Popen([*BENCH, "listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.readline().split()
        assert printed[:2] == ["listening", "on"]
        yield printed[2], process
        process.kill()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@needs_fabric
@pytest.mark.parametrize("command", ["write --size 64KiB", "pages --page 4KiB --count 64", "latency"])
def test_between_two(command: str, listener: tuple[str, subprocess.Popen[str]]) -> None:
    words = [*BENCH, *command.split(), *TINY, "--connect", listener[0]]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=19, check=True)
    line = json.loads(done.stdout)
    assert line["connect"] == listener[0]
    assert line["ratio"] > 0
    assert line["p50_us"] > 0
    assert line["cpu_s_per_gib"] is None, "half of it is spent where we cannot see it"


@needs_fabric
def test_an_interrupted_listener_takes_its_processes_along(listener: tuple[str, subprocess.Popen[str]]) -> None:
    where, process = listener
    command = [*BENCH, "latency", *TINY, "--repeat", "500", "--connect", where]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as measuring:
        while not (workers := children(process.pid)):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = measuring.communicate(timeout=19)
    assert process.wait(19) != 0
    assert measuring.returncode == 1
    assert f"the process at {where} failed" in errors
    assert not [pid for pid in workers if Path("/proc", pid).exists()]


# A library's thread may take the signal; so may the main thread, just before it would sleep.
TAKEN_ELSEWHERE = """
import signal, threading
from aio_transfer.bench.workers.remote_worker import serve
take = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)
serve("127.0.0.1:0", lambda _: threading.Timer(0.2, take).start())
"""


def test_an_interrupt_that_another_thread_takes() -> None:
    done = subprocess.run([sys.executable, "-c", TAKEN_ELSEWHERE], check=False, stderr=subprocess.PIPE, timeout=15)
    assert done.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in done.stderr


def failing(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*BENCH, *words, "--connect", "127.0.0.1:1"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=19)


def test_nobody_listens() -> None:
    done = failing("latency", *TINY)
    assert done.returncode == 1
    assert "aio-transfer bench listen 127.0.0.1:1" in done.stderr


def test_one_host_is_enough_for_shm() -> None:
    done = failing("write")
    assert done.returncode == 2
    assert "shm works on one host only" in done.stderr


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [("192.0.2.7:7471", ("192.0.2.7", 7471)), ("[2001:db8::7]:1", ("2001:db8::7", 1)), ("h:0", ("h", 0))],
)
def test_endpoints(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["", "h", ":1", "h:", "h:65536", "h:-1", "2001:db8::7:1", "[]:1", "h:1:2", "a b:1"])
def test_no_endpoints(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_endpoint(text)
