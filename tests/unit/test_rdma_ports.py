"""RDMA ports as a made-up kernel tells of them, and the doctor's checks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aio_transfer.backends.verbs.discovery import Gid, rdma_ports
from aio_transfer.doctor import rdma
from aio_transfer.topology.host import Host

if TYPE_CHECKING:
    from pathlib import Path

LINK_LOCAL = "fe80:0000:0000:0000:0200:00ff:fe00:0001"
ROUTED = "0000:0000:0000:0000:0000:ffff:0a00:0001"
EMPTY = "0000:0000:0000:0000:0000:0000:0000:0000"
SWITCH = "/sys/devices/pci0000:16/0000:16:01.0/0000:17:00.0"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(root=tmp_path)


def put(host: Host, name: str, text: str) -> None:
    path = host.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def put_pci(host: Host, at: str, **files: str) -> None:
    for name, text in files.items():
        put(host, f"{at}/{name}", text)
    link = host.path(f"/sys/bus/pci/devices/{at.rpartition('/')[2]}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(host.path(at))


def put_port(
    host: Host, device: str, *gids: tuple[str, str], link: str = "Ethernet", state: str = "4: ACTIVE", at: str = ""
) -> None:
    port = f"/sys/class/infiniband/{device}/ports/1"
    put(host, f"{port}/link_layer", link)
    put(host, f"{port}/state", state)
    put(host, f"{port}/rate", "100 Gb/sec (4X EDR)")
    put(host, f"{port}/gid_attrs/ndevs/0", "eth7")
    for index, (kind, address) in enumerate(gids):
        put(host, f"{port}/gids/{index}", address)
        if address != EMPTY:
            put(host, f"{port}/gid_attrs/types/{index}", kind)
    if at:
        host.path(f"/sys/class/infiniband/{device}/device").symlink_to(host.path(at))


def test_a_port_and_what_is_near_it(host: Host) -> None:
    put_pci(host, f"{SWITCH}/0000:18:00.0", numa_node="1", local_cpulist="32-63", **{"class": "0x020000"})
    put_pci(host, f"{SWITCH}/0000:19:00.0", vendor="0x10de", **{"class": "0x030200"})
    put_pci(host, "/sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0", vendor="0x10de", **{"class": "0x030200"})
    put_pci(host, f"{SWITCH}/0000:1a:00.0", vendor="0x1a03", **{"class": "0x030000"})  # the board's own display
    put_port(host, "mlx5_0", ("IB/RoCE v1", ROUTED), ("", EMPTY), ("RoCE v2", ROUTED), at=f"{SWITCH}/0000:18:00.0")
    (port,) = rdma_ports(host)
    assert (port.name, port.link, port.state, port.netdev) == ("mlx5_0:1", "Ethernet", "ACTIVE", "eth7")
    assert (port.pci, port.numa_node, port.cpus) == ("0000:18:00.0", 1, "32-63")
    assert port.gpus["0000:19:00.0"] == 2
    assert port.gpus["0000:81:00.0"] > 5
    assert len(port.gpus) == 2
    assert port.gids == (
        Gid(index=0, kind="RoCE v1", address="10.0.0.1"),
        Gid(index=2, kind="RoCE v2", address="10.0.0.1"),
    )


def test_no_device_no_word(host: Host) -> None:
    assert rdma_ports(host) == []
    assert rdma.check_ports(host) is rdma.check_gids(host) is rdma.check_verbs_drivers(host) is None


def test_ports_that_are_down(host: Host) -> None:
    put_port(host, "rxe0")
    up = rdma.check_ports(host)
    assert up is not None
    assert (up.status, up.detail) == ("ok", "rxe0:1 (100 Gb/sec (4X EDR))")
    put_port(host, "rxe1", state="1: DOWN")
    down = rdma.check_ports(host)
    assert down is not None
    assert (down.status, down.fix) == ("warn", "sudo ip link set eth7 up")
    assert "rxe1:1 is DOWN" in down.detail


def test_infiniband_without_a_subnet_manager(host: Host) -> None:
    put_port(host, "mlx5_0", ("IB/RoCE v1", LINK_LOCAL), link="InfiniBand", state="2: INIT")
    check = rdma.check_ports(host)
    assert check is not None
    assert "opensm" in check.fix
    assert rdma.check_gids(host) is None
    assert rdma_ports(host)[0].gids[0].kind == "InfiniBand"


def test_addresses(host: Host) -> None:
    put_port(host, "mlx5_0", ("RoCE v2", LINK_LOCAL), ("RoCE v2", ROUTED))
    good = rdma.check_gids(host)
    assert good is not None
    assert (good.status, good.detail) == ("ok", "RoCE v2: mlx5_0:1 10.0.0.1")
    put_port(host, "mlx5_1", ("RoCE v2", LINK_LOCAL), ("IB/RoCE v1", ROUTED))
    lacking = rdma.check_gids(host)
    assert lacking is not None
    assert (lacking.status, lacking.fix) == ("warn", "sudo ip address add <address>/<bits> dev eth7")
    assert "mlx5_1:1" in lacking.detail


def test_drivers_of_rdma_core(host: Host) -> None:
    put_port(host, "rxe0", ("RoCE v2", ROUTED))
    missing = rdma.check_verbs_drivers(host)
    assert missing is not None
    assert (missing.status, missing.fix) == ("warn", "sudo apt-get install -y ibverbs-providers")
    put(host, "/etc/libibverbs.d/rxe.driver", "driver rxe")
    there = rdma.check_verbs_drivers(host)
    assert there is not None
    assert (there.status, there.detail) == ("ok", "rxe")
