"""Each check on made-up machines, and all of them on this one."""

from __future__ import annotations

import os
import resource
import socket
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from aio_transfer.doctor import efa, limits, rdma, shm, software
from aio_transfer.doctor.all_checks import examine
from aio_transfer.doctor.host_check import HostCheck
from aio_transfer.topology.host import Host

if TYPE_CHECKING:
    from pathlib import Path

INFINITE = resource.RLIM_INFINITY


@dataclass(frozen=True, kw_only=True)
class Report:
    backend: str
    provider: str = ""
    usable: bool = True
    rails: tuple[str, ...] = ()
    detail: str = ""
    reason: str = ""
    hint: str = ""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(root=tmp_path)


def put(host: Host, name: str, text: str = "") -> None:
    path = host.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_device(host: Host, name: str, driver: str = "") -> None:
    device = host.path(f"/sys/class/infiniband/{name}")
    (device / "device").mkdir(parents=True)
    if driver:
        there = host.path(f"/sys/bus/pci/drivers/{driver}")
        there.mkdir(parents=True, exist_ok=True)
        (device / "device" / "driver").symlink_to(there)


def set_limit(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, hard))


def test_this_machine_has_what_every_machine_needs() -> None:
    checks = examine(Host(), [Report(backend="shm", detail="memcpy")])
    assert [check for check in checks if check.status == "fail"] == []
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.fix for check in checks if check.status == "warn")


def test_a_bare_machine_is_examined_too(host: Host) -> None:
    for check in examine(host, ()):
        assert isinstance(check, HostCheck)
        assert check.detail
        assert "\n" not in check.detail + check.fix


@pytest.mark.parametrize(
    ("soft", "hard", "devices", "status", "fix"),
    [
        (INFINITE, INFINITE, True, "ok", ""),
        (1 << 23, 1 << 23, False, "ok", ""),
        (1 << 23, INFINITE, True, "warn", "ulimit -l unlimited"),
        (1 << 23, 1 << 23, True, "warn", "sudo prlimit"),
    ],
)
def test_memlock(
    host: Host, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, devices: bool, status: str, fix: str
) -> None:
    set_limit(monkeypatch, soft, hard)
    if devices:
        put_device(host, "mlx5_0", "mlx5_core")
    check = limits.check_memlock(host)
    assert (check.status, check.fix[: len(fix)]) == (status, fix)


@pytest.mark.parametrize(
    ("soft", "hard", "status", "fix"),
    [
        (INFINITE, INFINITE, "ok", ""),
        (20000, 20000, "ok", ""),
        (1024, 1 << 20, "warn", "ulimit -n 4096"),
        (1024, INFINITE, "warn", "ulimit -n 4096"),
        (64, 64, "fail", "sudo prlimit"),
    ],
)
def test_nofile(host: Host, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, status: str, fix: str) -> None:
    set_limit(monkeypatch, soft, hard)
    check = limits.check_nofile(host)
    assert (check.status, check.fix[: len(fix)]) == (status, fix)


@pytest.mark.parametrize(
    ("usable", "there", "quota", "status", "fix"),
    [
        ({0, 1}, 8, None, "ok", False),
        ({3}, 8, None, "warn", True),
        ({0}, 1, None, "warn", False),
        ({0, 1, 2, 3}, 4, "150000 100000", "warn", True),
        ({0, 1, 2, 3}, 4, "max 100000", "ok", False),
    ],
)
def test_cpus(
    host: Host, monkeypatch: pytest.MonkeyPatch, usable: set[int], there: int, quota: str | None, status: str, fix: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: there)
    if quota:
        put(host, "/sys/fs/cgroup/cpu.max", quota + "\n")
    check = limits.check_cpus(host)
    assert (check.status, bool(check.fix)) == (status, fix)


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("", "skip", "has none"),
        ("HugePages_Total:       0\nHugepagesize:       2048 kB\n", "skip", "none of 2048 KiB"),
        ("HugePages_Total:       8\nHugePages_Free:        5\nHugepagesize:       2048 kB\n", "ok", "5 of 8"),
    ],
)
def test_huge_pages(host: Host, text: str, status: str, words: str) -> None:
    put(host, "/proc/meminfo", text)
    check = limits.check_huge_pages(host)
    assert check.status == status
    assert words in check.detail


def test_memfd_forbidden(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_name: str, _flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    check = shm.check_memfd(host)
    assert check.status == "fail"
    assert "not permitted" in check.detail


def test_unix_sockets_forbidden(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", forbidden)
    assert shm.check_abstract_socket(host).status == "fail"


@pytest.mark.parametrize(
    ("scope", "status", "fix"),
    [
        (None, "ok", ""),
        ("0", "ok", ""),
        ("1", "ok", ""),
        ("2", "warn", "sudo sysctl"),
        ("3", "warn", "echo kernel.yama"),
    ],
)
def test_process_vm(host: Host, monkeypatch: pytest.MonkeyPatch, scope: str | None, status: str, fix: str) -> None:
    monkeypatch.setattr(shm, "_try_process_vm", lambda: "")
    if scope:
        put(host, "/proc/sys/kernel/yama/ptrace_scope", scope + "\n")
    check = shm.check_process_vm(host)
    assert (check.status, check.fix[: len(fix)]) == (status, fix)


def test_process_vm_filtered(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "_try_process_vm", lambda: "Operation not permitted")
    check = shm.check_process_vm(host)
    assert check.status == "warn"
    assert "not permitted" in check.detail


@pytest.mark.parametrize(
    ("version", "status"), [("2.4.6", "ok"), ("1.26.0rc1", "ok"), ("1.25.2", "fail"), (None, "fail")]
)
def test_numpy(host: Host, monkeypatch: pytest.MonkeyPatch, version: str | None, status: str) -> None:
    def find(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", find)
    assert software.check_numpy(host).status == status


def test_libfabric_is_missing_or_no_library(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = tmp_path / "libfabric.so.1"
    wrong.write_text("not a library")
    monkeypatch.setattr(software, "_libfabric_paths", lambda _host: [str(wrong), "/no/such/libfabric.so.1"])
    check = software.check_libfabric(host)
    assert (check.status, check.fix) == ("warn", "pip install 'aio-transfer[libfabric]'")


def test_backends(host: Host) -> None:
    good, bad = Report(backend="shm"), Report(backend="shm", usable=False, reason="no memfd", hint="mend it")
    fabric_there = Report(backend="libfabric", provider="tcp")
    assert software.check_shm_backend([bad, good]).status == "ok"
    assert (software.check_shm_backend([bad]).detail, software.check_shm_backend([bad]).fix) == ("no memfd", "mend it")
    assert software.check_shm_backend([]).status == "fail"
    assert software.check_other_backends([good, fabric_there]).detail == "libfabric tcp"
    lacking = software.check_other_backends(
        [good, Report(backend="verbs", usable=False, reason="no NIC", hint="buy one")]
    )
    assert (lacking.status, lacking.fix) == ("warn", "buy one")
    assert "no NIC" in lacking.detail
    assert software.check_other_backends([good]).fix


def test_rdma_devices(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rdma.check_rdma_devices(host).status == "skip"
    put_device(host, "mlx5_0", "mlx5_core")
    put_device(host, "rxe0")
    assert host.rdma_devices() == {"mlx5_0": "mlx5_core", "rxe0": ""}
    assert "modprobe ib_uverbs" in rdma.check_rdma_devices(host).fix
    put(host, "/dev/infiniband/uverbs0")
    put(host, "/dev/infiniband/rdma_cm")
    assert rdma.check_rdma_devices(host) == HostCheck(name="rdma", status="ok", detail="mlx5_0 (mlx5_core), rxe0")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert rdma.check_rdma_devices(host).fix == "sudo chmod a+rw /dev/infiniband/uverbs0"


@pytest.mark.parametrize(
    ("kernel", "peermem", "status"),
    [("6.1.0-18-amd64", False, "ok"), ("5.12.0", False, "ok"), ("5.10.0", True, "ok"), ("5.4.0-1", False, "warn")],
)
def test_gpu_memory(host: Host, kernel: str, peermem: bool, status: str) -> None:
    assert rdma.check_gpu_memory(host).status == "skip"
    put(host, "/proc/driver/nvidia/version", "NVRM version: 570")
    assert rdma.check_gpu_memory(host).status == "skip"
    put_device(host, "mlx5_0", "mlx5_core")
    put(host, "/proc/sys/kernel/osrelease", kernel + "\n")
    if peermem:
        put(host, "/sys/module/nvidia_peermem/version", "570")
    assert rdma.check_gpu_memory(host).status == status


def test_efa_is_not_mentioned_without_a_device(host: Host) -> None:
    put_device(host, "mlx5_0", "mlx5_core")
    assert efa.check_efa_module(host) is None
    assert efa.check_efa_installer(host) is None
    assert efa.check_efa_security_group(host) is None
    assert efa.check_efa_fork(host) is None
    assert efa.check_efa_huge_pages(host) is None


def test_efa(host: Host) -> None:
    put_device(host, "rdmap0s31", "efa")
    missing = efa.check_efa_installer(host)
    assert missing is not None
    assert "efa_installer.sh" in missing.fix
    put(host, "/opt/amazon/efa_installed_packages", "# EFA installer version: 1.38.0\n# Packages:\n")
    assert efa.check_efa_installer(host) == HostCheck(name="efa installer", status="ok", detail="1.38.0")
    unknown = efa.check_efa_module(host)
    assert unknown is not None
    assert unknown.status == "ok"
    for version, status in (("2.10.0g", "ok"), ("2.1.1", "ok"), ("1.16.0", "warn")):
        put(host, "/sys/module/efa/version", version)
        check = efa.check_efa_module(host)
        assert check is not None
        assert check.status == status
    reminder = efa.check_efa_security_group(host)
    assert reminder is not None
    assert reminder.status == "skip"
    assert "aws ec2" in reminder.fix


@pytest.mark.parametrize(
    ("kernel", "environ", "status"),
    [
        ("5.13.0-aws", {}, "ok"),
        ("5.10.224-212.aws", {}, "warn"),
        ("5.10.224-212.aws", {"FI_EFA_FORK_SAFE": "1"}, "ok"),
        ("5.10.224-212.aws", {"RDMAV_FORK_SAFE": "1"}, "ok"),
    ],
)
def test_efa_forks(host: Host, kernel: str, environ: dict[str, str], status: str) -> None:
    put_device(host, "rdmap0s31", "efa")
    put(host, "/proc/sys/kernel/osrelease", kernel)
    check = efa.check_efa_fork(replace(host, environ=environ))
    assert check is not None
    assert check.status == status
    assert (check.fix == "export FI_EFA_FORK_SAFE=1") == (status == "warn")


@pytest.mark.parametrize(("free", "status"), [(5, "ok"), (0, "warn")])
def test_efa_huge_pages(host: Host, free: int, status: str) -> None:
    put_device(host, "rdmap0s31", "efa")
    put(
        host, "/proc/meminfo", f"HugePages_Total:       8\nHugePages_Free:        {free}\nHugepagesize:       2048 kB\n"
    )
    check = efa.check_efa_huge_pages(host)
    assert check is not None
    assert check.status == status
