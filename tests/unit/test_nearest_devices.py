"""Nearest devices, from a made-up sysfs and from a topology file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from aio_transfer import UsageError
from aio_transfer.backends.libfabric.nearest import NearestDevices, nearest_devices
from aio_transfer.topology.host import Host

if TYPE_CHECKING:
    from pathlib import Path

GPU = "0000:53:00.0"


def put(host: Host, name: str, text: str) -> None:
    path = host.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two EFA devices beside the GPU below one switch, one on another, and a NIC that is none."""
    host = Host(root=tmp_path)
    places = {
        "rdmap79": ("pci0000:50/0000:50:01.0/0000:51:00.0", "0000:4f:00.0", "efa", 0),
        "rdmap80": ("pci0000:50/0000:50:01.0/0000:51:00.0", "0000:50:00.0", "efa", 0),
        "rdmap200": ("pci0000:c0/0000:c0:01.0", "0000:c8:00.0", "efa", 1),
        "mlx5_0": ("pci0000:50/0000:50:01.0/0000:51:00.0", "0000:52:00.0", "mlx5_core", 0),
    }
    for name, (bus, address, driver, node) in places.items():
        at = f"/sys/devices/{bus}/{address}"
        put(host, f"{at}/numa_node", str(node))
        put(host, f"{at}/local_cpulist", ("0-2,8", "4")[node])
        put(host, f"/sys/bus/pci/drivers/{driver}/uevent", "")
        host.path(f"{at}/driver").symlink_to(host.path(f"/sys/bus/pci/drivers/{driver}"))
        put(host, f"/sys/class/infiniband/{name}/ports/1/state", "4: ACTIVE")
        host.path(f"/sys/class/infiniband/{name}/device").symlink_to(host.path(at))
    gpu = f"/sys/devices/pci0000:50/0000:50:01.0/0000:51:00.0/{GPU}"
    put(host, f"{gpu}/class", "0x030200")
    put(host, f"{gpu}/vendor", "0x10de")
    link = host.path(f"/sys/bus/pci/devices/{GPU}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(host.path(gpu))
    return host


def test_nics_below_the_switch_of_a_gpu(host: Host) -> None:
    nearest = nearest_devices(host, GPU)
    assert nearest.devices == ("rdmap79", "rdmap80")
    assert nearest.cores == (0, 1, 2, 8)


def test_nics_of_a_node(host: Host) -> None:
    assert nearest_devices(host, "numa1") == NearestDevices(devices=("rdmap200",), cpus="4")


def test_a_file_knows_better(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "topology.json"
    file.write_text(json.dumps({GPU: {"devices": ["rdmap200"], "cpus": "7"}}))
    assert nearest_devices(host, GPU, file) == NearestDevices(devices=("rdmap200",), cpus="7")
    assert nearest_devices(host, "numa0", file).devices == ("rdmap79", "rdmap80")
    for text in ("[]", "{", json.dumps({GPU: {"cpus": "7"}})):
        file.write_text(text)
        with pytest.raises(UsageError, match="is no topology"):
            nearest_devices(host, GPU, file)


def test_nothing_is_near(host: Host) -> None:
    with pytest.raises(
        UsageError, match=r"no EFA device is near '0000:01:00\.0'; there are 0000:53:00\.0, numa0, numa1"
    ):
        nearest_devices(host, "0000:01:00.0")
