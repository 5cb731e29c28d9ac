"""Checks of software: Python, NumPy, libfabric, libibverbs, and which backends can run."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aio_transfer.doctor.host_check import HostCheck
from aio_transfer.topology.host import Host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.driver.backend_registry import BackendReport

__all__ = (
    "check_libfabric",
    "check_libibverbs",
    "check_numpy",
    "check_other_backends",
    "check_python",
    "check_shm_backend",
)

OLDEST_PYTHON: Final = (3, 11)
OLDEST_NUMPY: Final = (1, 26)
OLDEST_LIBFABRIC: Final = (1, 15)
"""First version whose tcp provider carries reliable datagrams without rxm."""
INSTALL_LIBFABRIC: Final = "pip install 'aio-transfer[libfabric]'"


def check_python(_host: Host) -> HostCheck:
    """Python's version and build."""
    detail = f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}"
    if sys.version_info >= OLDEST_PYTHON and platform.python_implementation() == "CPython":
        return HostCheck(name="python", status="ok", detail=detail)
    return HostCheck(
        name="python", status="fail", detail=f"{detail}; needs CPython 3.11 or later", fix="uv python install 3.13"
    )


def check_numpy(_host: Host) -> HostCheck:
    """NumPy's version."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return HostCheck(name="numpy", status="fail", detail="not installed", fix="pip install 'numpy>=1.26'")
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_NUMPY:
        return HostCheck(name="numpy", status="ok", detail=version)
    return HostCheck(name="numpy", status="fail", detail=f"{version} is too old", fix="pip install 'numpy>=1.26'")


def check_libfabric(host: Host) -> HostCheck:
    """libfabric: found, loadable, new enough. The highest version found is used."""
    found: list[tuple[tuple[int, int], str]] = []
    reasons: list[str] = []
    for path in _libfabric_paths(host):
        try:
            version = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL).fi_version
        except (OSError, AttributeError) as error:
            reasons.append(str(error))
            continue
        version.restype = ctypes.c_uint32
        found.append(((version() >> 16, version() & 0xFFFF), path))
    if not found:
        detail = f"not found ({reasons[0]}); shm works without it" if reasons else "not found; shm works without it"
        return HostCheck(name="libfabric", status="warn", detail=detail, fix=INSTALL_LIBFABRIC)
    version_found, path = max(found)
    detail = f"{version_found[0]}.{version_found[1]} at {path}"
    if version_found < OLDEST_LIBFABRIC:
        return HostCheck(name="libfabric", status="warn", detail=f"{detail} is older than 1.15", fix=INSTALL_LIBFABRIC)
    return HostCheck(name="libfabric", status="ok", detail=detail)


def _libfabric_paths(host: Host) -> list[str]:
    """Return the paths that ``backends/libfabric`` tries: AWS's, the dynamic loader's, and the ``mpich`` wheel's."""
    amazon = host.path("/opt/amazon/efa/lib64/libfabric.so.1")
    wheel = Path(sys.prefix, "lib", "mpich", "libfabric.so.1")
    return [*([str(amazon)] if amazon.exists() else []), "libfabric.so.1", *([str(wheel)] if wheel.exists() else [])]


def check_libibverbs(host: Host) -> HostCheck:
    """rdma-core's libibverbs: needed for RDMA devices only."""
    try:
        ctypes.CDLL("libibverbs.so.1", mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        devices = host.rdma_devices()
        return HostCheck(
            name="libibverbs",
            status="warn" if devices else "skip",
            detail=f"{error}" if devices else "not installed, and no RDMA device here needs it",
            fix="sudo apt-get install -y libibverbs1 ibverbs-providers",
        )
    return HostCheck(name="libibverbs", status="ok", detail="libibverbs.so.1 loads")


def check_shm_backend(reports: Sequence[BackendReport]) -> HostCheck:
    """Check the shm backend, which must work on every machine."""
    shm = [report for report in reports if report.backend == "shm"]
    if any(report.usable for report in shm):
        return HostCheck(name="backend shm", status="ok", detail=next(r.detail for r in shm if r.usable) or "usable")
    reason, fix = (shm[0].reason, shm[0].hint) if shm else ("the installation has no such backend", "")
    fix = fix or "pip install --force-reinstall --no-deps aio-transfer"
    return HostCheck(name="backend shm", status="fail", detail=reason, fix=fix)


def check_other_backends(reports: Sequence[BackendReport]) -> HostCheck:
    """Check the other backends, which reach other hosts."""
    others = [report for report in reports if report.backend != "shm"]
    usable = [f"{report.backend} {report.provider}".strip() for report in others if report.usable]
    if usable:
        return HostCheck(name="other paths", status="ok", detail=", ".join(usable))
    reason = next((report.reason for report in others if report.reason), "no other backend is installed")
    fix = next((report.hint for report in others if report.hint), INSTALL_LIBFABRIC)
    return HostCheck(
        name="other paths", status="warn", detail=f"only processes on this host can be reached: {reason}", fix=fix
    )
