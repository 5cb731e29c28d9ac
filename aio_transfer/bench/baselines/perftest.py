"""Baseline of verbs: ``ib_write_bw`` and ``ib_write_lat`` of perftest, which write without counting."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from aio_transfer.backends.verbs.discovery import rdma_ports
from aio_transfer.bench.workers.worker_state import Empty, WorkerState
from aio_transfer.errors import AioTransferError
from aio_transfer.topology.host import Host

if TYPE_CHECKING:
    from anyio.abc import Process

    from aio_transfer.bench.options import Options

__all__ = ("RdmaPortName", "find_port", "is_possible", "one_way_us", "parse_row", "seconds_per_write")

WAIT_S: Final = 60.0
MIN_ITERATIONS: Final = 5
"""Smallest number that perftest accepts."""
MIB: Final = 1 << 20
"""Unit of the bandwidth that perftest prints as MB."""
TRIES: Final = 3
"""perftest measures the clock frequency first, which can fail on a busy machine; it then prints 0.00."""
TCP_LISTEN: Final = "0A"
"""Socket state in ``/proc/net/tcp``."""


class RdmaPortName(msgspec.Struct, frozen=True):
    """Port of an RDMA device, as the engine names it: ``device:port``."""

    name: str


async def find_port(state: WorkerState, _request: Empty) -> RdmaPortName:
    """Return the port through which this worker's engine reaches its first peer."""
    peer = await state.engines[0].connect(state.remotes[0])
    return RdmaPortName(peer.path.rails[0] if peer.path else "")


def is_possible(options: Options) -> bool:
    """Whether both programs are installed, both workers are on this host, and the engines do not spin meanwhile."""
    is_quiet = options.backend == "verbs" and options.progress != "spin" and not options.connect
    return is_quiet and all(map(shutil.which, ("ib_write_bw", "ib_write_lat")))


async def seconds_per_write(port: RdmaPortName, nbytes: int, iterations: int) -> float:
    """Return the mean time of a write in a stream, with perftest's own queue depth."""
    return nbytes / (await _measure("ib_write_bw", port, nbytes, iterations, column=3) * MIB)


async def one_way_us(port: RdmaPortName, nbytes: int, iterations: int) -> float:
    """Return the median of half the round trip; both ends spin."""
    return await _measure("ib_write_lat", port, nbytes, iterations, column=4)


async def _measure(program: str, port: RdmaPortName, nbytes: int, iterations: int, *, column: int) -> float:
    """Return one column of the row that it prints."""
    for _ in range(TRIES):
        value = (await _run(program, port, nbytes, iterations))[column]
        if value > 0:
            return value
    raise AioTransferError(f"{program} on {port.name} measured nothing, {TRIES} times")


async def _run(program: str, port: RdmaPortName, nbytes: int, iterations: int) -> list[float]:
    """Run both ends on one port; return the row of numbers that the writing end prints."""
    device, _, number = port.name.partition(":")
    tcp_port = _free_port()
    command = [program, "-d", device, "-i", number or "1", *_gid(device, int(number or 1)), "-p", str(tcp_port)]
    command += [
        "-s",
        str(nbytes),
        "-n",
        str(max(MIN_ITERATIONS, iterations)),
        "-F",
    ]  # -F: accept a variable CPU frequency
    with anyio.move_on_after(WAIT_S):
        async with await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as target:
            try:
                await _await_listening(target, tcp_port)
                done = await anyio.run_process([*command, "127.0.0.1"], check=False, stderr=subprocess.STDOUT)
                return parse_row(done.stdout.decode(), nbytes)
            except BaseException:
                target.kill()  # it waits for a writer without a timeout
                raise
    raise AioTransferError(f"{program} on {port.name} did not exit within {WAIT_S:g} s")


async def _await_listening(target: Process, tcp_port: int) -> None:
    """Wait until the target listens; a test connection is not possible, since it accepts only one."""
    while not any(_is_listening(table, tcp_port) for table in ("tcp", "tcp6")):
        if target.returncode is not None:
            raise AioTransferError(f"perftest's target exited with status {target.returncode}")
        await anyio.sleep(0.02)


def _is_listening(table: str, tcp_port: int) -> bool:
    sockets = (line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:])
    return any(one[1].endswith(f":{tcp_port:04X}") and one[3] == TCP_LISTEN for one in sockets)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        found: int = one.getsockname()[1]
        return found


def _gid(device: str, number: int) -> list[str]:
    """Return the option for the GID that the engine chooses; perftest's default depends on its version."""
    found = [one.gids for one in rdma_ports(Host()) if (one.device, one.port) == (device, number)]
    gids = sorted((gid for gid in found[0] if gid.kind == "RoCE v2"), key=lambda gid: not gid.is_routed)
    return ["-x", str(gids[0].index)] if gids else []


def parse_row(output: str, nbytes: int) -> list[float]:
    """Return the numbers of the line that begins with the size.

    :raises AioTransferError: there is no such line
    """
    for line in output.splitlines():
        if re.fullmatch(rf"\s*{nbytes}(\s+[\d.]+)+\s*", line):
            return [float(number) for number in line.split()]
    raise AioTransferError(f"perftest failed: {output.strip()[-1000:]}")
