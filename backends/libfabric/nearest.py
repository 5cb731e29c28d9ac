"""Nearest EFA devices: those closest to a GPU or a NUMA node, and the cores there, from sysfs or a topology file."""

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

__all__ = ("NearestDevices", "nearest_devices", "nearest_devices_here")


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestDevices:
    """Devices at one place of the machine, and the cores there.

    :param devices: the kernel's names of the NICs
    :param cpus: cores, as the kernel lists them (``"0-23,48-71"``); empty where it reports none
    """

    devices: tuple[str, ...]
    cpus: str

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores one by one."""
        return tuple(_numbers(self.cpus))


@functools.cache
def nearest_devices_here(near: str, topology: str = "") -> NearestDevices:
    """Return :func:`nearest_devices` of this machine; cached, since its buses do not change.

    ``SYSFS_PATH`` is where rdma-core and libfabric's efa provider look, too.
    """
    host = Host(root=Path(os.environ.get("SYSFS_PATH", "/sys")).parent)
    return nearest_devices(host, near, Path(topology) if topology else None)


def nearest_devices(host: Host, near: str, topology: Path | None = None) -> NearestDevices:
    """Find the EFA devices that are nearest to a GPU or a NUMA node.

    :param near: the PCI address of a GPU (``"0000:53:00.0"``), or ``"numa"`` and the number of a node
    :param topology: a JSON file that overrides what the kernel reports, for virtual machines:
        ``{near: {"devices": [...], "cpus": ""}}``; names that are not in it are looked up all the same
    :raises UsageError: there is no such GPU or node, or no EFA device; or the file is malformed
    """
    listed = _read_topology(near, topology)
    if listed is not None:
        return listed
    ports = [port for port in rdma_ports(host) if port.driver == "efa"]
    distances = [(hops, port) for port in ports if (hops := _distance(port, near)) is not None]
    if not distances:
        known = sorted({gpu for port in ports for gpu in port.gpus} | {f"numa{port.numa_node}" for port in ports})
        raise UsageError(f"no EFA device is near {near!r}; there are {', '.join(known) or 'none'}")
    least = min(hops for hops, _ in distances)
    chosen = [port for hops, port in distances if hops == least]
    return NearestDevices(devices=tuple(port.device for port in chosen), cpus=chosen[0].cpus)


def _distance(port: RdmaPort, near: str) -> int | None:
    if near.startswith("numa"):
        return 0 if near == f"numa{port.numa_node}" else None
    return port.gpus.get(near)


def _read_topology(near: str, topology: Path | None) -> NearestDevices | None:
    if topology is None:
        return None
    try:
        entry = json.loads(topology.read_text()).get(near)
        if entry is None:
            return None
        return NearestDevices(devices=tuple(entry["devices"]), cpus=entry.get("cpus", ""))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        message = f"{topology} is no topology: {error!r}"
        raise UsageError(message) from error


def _numbers(cpus: str) -> Iterator[int]:
    for part in filter(None, cpus.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
