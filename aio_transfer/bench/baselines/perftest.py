"""perftest's ``ib_write_bw`` and ``ib_write_lat``: what a port gives to a loop in C on libibverbs, without a count."""

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
from aio_transfer.bench.workers.worker_state import Nothing, Place
from aio_transfer.errors import AioTransferError
from aio_transfer.topology.host import Host

if TYPE_CHECKING:
    from anyio.abc import Process

    from aio_transfer.bench.options import Options

__all__ = ("Port", "is_possible", "one_way_us", "port", "row_of", "seconds_per_write")

WAIT_S: Final = 60.0
MIN_ROUNDS: Final = 5
"""perftest refuses fewer."""
MIB: Final = 1 << 20
"""Its unit of bandwidth, which it calls MB."""
TRIES: Final = 3
"""It tells time by cycles, whose number per second it measures first; that goes wrong on a busy machine, with 0.00."""
LISTENING: Final = "0A"
"""A socket's state in ``/proc/net/tcp``."""


class Port(msgspec.Struct, frozen=True):
    """A port of a device, as the engine names it."""

    name: str


async def port(place: Place, ask: Nothing) -> Port:  # noqa: ARG001 - every step takes something
    """Say by which port this process's engine reaches the first of the others."""
    peer = await place.engines[0].connect(place.remotes[0])
    return Port(peer.path.rails[0] if peer.path else "")


def is_possible(options: Options) -> bool:
    """Whether both programs are here, as is the target, and the engines do not spin while these are measured."""
    is_quiet = options.backend == "verbs" and options.progress != "spin" and not options.connect
    return is_quiet and all(map(shutil.which, ("ib_write_bw", "ib_write_lat")))


async def seconds_per_write(port: Port, nbytes: int, rounds: int) -> float:
    """Return the mean of a stream of writes, as many under way as perftest likes."""
    return nbytes / (await _figure("ib_write_bw", port, nbytes, rounds, column=3) * MIB)


async def one_way_us(port: Port, nbytes: int, rounds: int) -> float:
    """Return the median of half round trips, both ends spinning."""
    return await _figure("ib_write_lat", port, nbytes, rounds, column=4)


async def _figure(program: str, port: Port, nbytes: int, rounds: int, *, column: int) -> float:
    """Return one of the numbers that it prints."""
    for _ in range(TRIES):
        figure = (await _run(program, port, nbytes, rounds))[column]
        if figure > 0:
            return figure
    raise AioTransferError(f"{program} on {port.name} measured nothing, {TRIES} times")


async def _run(program: str, port: Port, nbytes: int, rounds: int) -> list[float]:
    """Run both ends on one port; return the row of numbers that the writing one prints."""
    device, _, number = port.name.partition(":")
    listening = _free_port()
    command = [program, "-d", device, "-i", number or "1", *_gid(device, int(number or 1)), "-p", str(listening)]
    command += ["-s", str(nbytes), "-n", str(max(MIN_ROUNDS, rounds)), "-F"]  # -F: the clock's speed may vary
    with anyio.move_on_after(WAIT_S):
        async with await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as target:
            try:
                await _listens(target, listening)
                said = await anyio.run_process([*command, "127.0.0.1"], check=False, stderr=subprocess.STDOUT)
                return row_of(said.stdout.decode(), nbytes)
            except BaseException:
                target.kill()  # it would wait for a writer for ever
                raise
    raise AioTransferError(f"{program} on {port.name} had not ended after {WAIT_S:g} s")


async def _listens(target: Process, at: int) -> None:
    """Wait until it does. To try would be to connect, and it takes one connection."""
    while not any(_is_listening(table, at) for table in ("tcp", "tcp6")):
        if target.returncode is not None:
            raise AioTransferError(f"perftest's target ended with {target.returncode}")
        await anyio.sleep(0.02)


def _is_listening(table: str, at: int) -> bool:
    sockets = (line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:])
    return any(one[1].endswith(f":{at:04X}") and one[3] == LISTENING for one in sockets)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        found: int = one.getsockname()[1]
        return found


def _gid(device: str, number: int) -> list[str]:
    """Name the address by its type, as the engine does; perftest's default depends on its version."""
    found = [one.gids for one in rdma_ports(Host()) if (one.device, one.port) == (device, number)]
    gids = sorted((gid for gid in found[0] if gid.kind == "RoCE v2"), key=lambda gid: not gid.is_routed)
    return ["-x", str(gids[0].index)] if gids else []


def row_of(said: str, nbytes: int) -> list[float]:
    """Return the numbers of the one line that begins with the size.

    :raises AioTransferError: there is none, since it failed
    """
    for line in said.splitlines():
        if re.fullmatch(rf"\s*{nbytes}(\s+[\d.]+)+\s*", line):
            return [float(number) for number in line.split()]
    raise AioTransferError(f"perftest failed: {said.strip()[-1000:]}")
