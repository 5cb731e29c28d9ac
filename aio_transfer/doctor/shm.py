"""Checks of the kernel features that shm uses. Each is tried, since a container may forbid what the kernel has."""

from __future__ import annotations

import ctypes
import os
import socket

from aio_transfer.doctor.host_check import HostCheck
from aio_transfer.topology.host import Host

__all__ = ("check_abstract_socket", "check_memfd", "check_process_vm")


def check_memfd(_host: Host) -> HostCheck:
    """``memfd_create``: all memory from ``engine.allocate`` comes from it."""
    try:
        fd = os.memfd_create("aio-transfer-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return HostCheck(
            name="memfd",
            status="fail",
            detail=f"memfd_create: {error.strerror}: shm cannot work",
            fix="docker run --security-opt seccomp=unconfined …  # or a profile that allows memfd_create",
        )
    os.close(fd)
    return HostCheck(name="memfd", status="ok", detail="memfd_create works")


def check_abstract_socket(_host: Host) -> HostCheck:
    """Abstract AF_UNIX sockets: engines on one host find each other and pass fds through them."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"\0aio-transfer-doctor-{os.getpid()}")
            listener.listen(1)
    except OSError as error:
        return HostCheck(
            name="unix socket",
            status="fail",
            detail=f"abstract AF_UNIX socket: {error.strerror}: engines on this host cannot share memory",
            fix="docker run --security-opt seccomp=unconfined …  # or a profile that allows AF_UNIX",
        )
    return HostCheck(name="unix socket", status="ok", detail="abstract AF_UNIX sockets work")


class _IoVector(ctypes.Structure):
    """``struct iovec`` of process_vm_readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


def check_process_vm(host: Host) -> HostCheck:
    """``process_vm_writev``: shm uses it for memory that is not from ``engine.allocate``."""
    name = "process_vm"
    failure = _try_process_vm()
    if failure:
        return HostCheck(
            name=name,
            status="warn",
            detail=f"process_vm_readv: {failure}: shm reaches only memory from engine.allocate()",
            fix="docker run --cap-add SYS_PTRACE …",
        )
    scope = host.read("/proc/sys/kernel/yama/ptrace_scope")
    if scope in (None, "0"):
        return HostCheck(name=name, status="ok", detail="permitted between processes of one user")
    if scope == "1":
        return HostCheck(
            name=name, status="ok", detail="ptrace_scope is 1: permitted, since engines allow it with PR_SET_PTRACER"
        )
    return HostCheck(
        name=name,
        status="warn",
        detail=f"ptrace_scope is {scope}: without CAP_SYS_PTRACE, shm reaches only memory from engine.allocate()",
        # The kernel does not leave scope 3 before a reboot.
        fix="sudo sysctl kernel.yama.ptrace_scope=1"
        if scope == "2"
        else "echo kernel.yama.ptrace_scope=1 | sudo tee /etc/sysctl.d/90-ptrace.conf && sudo reboot",
    )


def _try_process_vm() -> str:
    """Read a word of this process, which only a seccomp filter can forbid; returns the error, or an empty string."""
    source, target = ctypes.c_uint64(0x5AFE), ctypes.c_uint64(0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    vectors = [_IoVector(ctypes.addressof(word), ctypes.sizeof(word)) for word in (target, source)]
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    done = libc.process_vm_readv(os.getpid(), ctypes.byref(vectors[0]), one, ctypes.byref(vectors[1]), one, none)
    return "" if done == ctypes.sizeof(source) and target.value == source.value else os.strerror(ctypes.get_errno())
