"""Which EFA devices are nearest to a GPU or a NUMA node, and which cores are: as the kernel or a file tells."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aio_transfer.backends.verbs.discovery import rdma_ports
from aio_transfer.errors import UsageError
from aio_transfer.topology.host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_transfer.backends.verbs.discovery import RdmaPort

__all__ = ("Place", "nearest", "place_of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What lies together.

    :param devices: the kernel's names of the NICs
    :param cpus: cores, as the kernel lists them (``"0-23,48-71"``); empty where it does not tell
    """

    devices: tuple[str, ...]
    cpus: str

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores one by one."""
        return tuple(_numbers(self.cpus))


@functools.cache
def place_of(near: str, topology: str = "") -> Place:
    """Return what :func:`nearest` says of this machine; asked once, since its buses do not change.

    :source: ``SYSFS_PATH`` is where rdma-core and libfabric's provider look, too
    """
    host = Host(root=Path(os.environ.get("SYSFS_PATH", "/sys")).parent)
    return nearest(host, near, Path(topology) if topology else None)


def nearest(host: Host, near: str, topology: Path | None = None) -> Place:
    """Find the EFA devices that are nearest to something.

    :param near: the PCI address of a GPU (``"0000:53:00.0"``), or ``"numa"`` and the number of a node
    :param topology: a file that knows better, in virtual machines say: ``{near: {"devices": [...], "cpus": ""}}`` in
        JSON; what it does not name is looked up all the same
    :raises UsageError: there is no such GPU or node, or no EFA device; or the file is malformed
    """
    told = _told(near, topology)
    if told is not None:
        return told
    ports = [port for port in rdma_ports(host) if port.driver == "efa"]
    distances = [(hops, port) for port in ports if (hops := _distance(port, near)) is not None]
    if not distances:
        known = sorted({gpu for port in ports for gpu in port.gpus} | {f"numa{port.numa_node}" for port in ports})
        raise UsageError(f"no EFA device is near {near!r}; there are {', '.join(known) or 'none'}")
    least = min(hops for hops, _ in distances)
    chosen = [port for hops, port in distances if hops == least]
    return Place(devices=tuple(port.device for port in chosen), cpus=chosen[0].cpus)


def _distance(port: RdmaPort, near: str) -> int | None:
    if near.startswith("numa"):
        return 0 if near == f"numa{port.numa_node}" else None
    return port.gpus.get(near)


def _told(near: str, topology: Path | None) -> Place | None:
    if topology is None:
        return None
    try:
        entry = json.loads(topology.read_text()).get(near)
        return None if entry is None else Place(devices=tuple(entry["devices"]), cpus=entry.get("cpus", ""))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        message = f"{topology} is no topology: {error!r}"
        raise UsageError(message) from error


def _numbers(cpus: str) -> Iterator[int]:
    for part in filter(None, cpus.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
