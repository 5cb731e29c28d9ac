"""CUDA driver API by ``dlopen``, without CuPy or torch: exports device memory as a dma-buf.

:source: the CUDA driver API, ``cuMemGetHandleForAddressRange`` (CUDA 11.7 or later, with the open kernel modules)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from aio_transfer.errors import BackendUnavailableError, ProviderError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Export", "export")

INVALID_VALUE: Final = 1
NOT_SUPPORTED: Final = 801
POINTER_DEVICE_ORDINAL: Final = 9
DEVICE_DMA_BUF_SUPPORTED: Final = 124
RANGE_DMA_BUF_FD: Final = 1


class _Function(Protocol):
    """A ctypes function that returns a ``CUresult``."""

    def __call__(self, *arguments: object) -> int: ...


class Export(NamedTuple):
    """A dma-buf that holds a range of device memory.

    :ivar fd: to be closed by the caller
    :ivar offset: of the range in the dma-buf, in bytes
    :ivar device: number of the CUDA device
    """

    fd: int
    offset: int
    device: int


def export(address: int, nbytes: int) -> Export:
    """Export device memory as a dma-buf.

    Whole host pages are exported: a holder of the fd also reaches the neighbours within these pages.

    :param address: a device pointer, of any context of this process
    :raises UsageError: the CUDA driver does not know the address
    :raises UnsupportedError: the device's driver exports none
    :raises BackendUnavailableError: there is no CUDA driver
    :raises ProviderError: it refused; ``code`` is the ``CUresult``
    """
    device, supported = ctypes.c_int(), ctypes.c_int()
    code = _driver().cuPointerGetAttribute(ctypes.byref(device), POINTER_DEVICE_ORDINAL, ctypes.c_uint64(address))
    if code == INVALID_VALUE:
        message = f"{address:#x} is not memory of a CUDA device"
        raise UsageError(message)
    _check("cuPointerGetAttribute", code)
    _call("cuDeviceGetAttribute", ctypes.byref(supported), DEVICE_DMA_BUF_SUPPORTED, device)
    if not supported.value:
        has = f"CUDA device {device.value}, whose driver exports none"
        raise UnsupportedError("registering device memory", needs="a dma-buf (NVIDIA's open kernel modules)", has=has)
    first = address & -mmap.PAGESIZE
    last = -(-(address + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = ctypes.c_int(-1)
    with _context(device):
        code = _driver().cuMemGetHandleForAddressRange(
            ctypes.byref(fd),
            ctypes.c_uint64(first),
            ctypes.c_size_t(last - first),
            RANGE_DMA_BUF_FD,
            ctypes.c_ulonglong(0),
        )
    _check(f"a dma-buf of {nbytes} B at {address:#x}", code)
    return Export(fd.value, address - first, device.value)


@contextlib.contextmanager
def _context(device: ctypes.c_int) -> Iterator[None]:
    """Make the device's primary context current: this thread may not have used the device before."""
    context = ctypes.c_void_p()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            _driver().cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        _driver().cuDevicePrimaryCtxRelease_v2(device)


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendUnavailableError("cuda", str(error), "install NVIDIA's driver") from error
    code = library.cuInit(0)
    if code != 0:
        raise BackendUnavailableError("cuda", f"cuInit: {_name_of(library, code)}", "nvidia-smi")
    return library


def _call(function: str, *arguments: object) -> None:
    call: _Function = getattr(_driver(), function)
    _check(function, call(*arguments))


def _check(operation: str, code: int) -> None:
    if code == NOT_SUPPORTED:
        needs = "memory that can be exported (cudaMalloc's; of the virtual memory API what was made for GPUDirect RDMA)"
        raise UnsupportedError(operation, needs=needs, has=_name_of(_driver(), code))
    if code != 0:
        raise ProviderError(operation, code=code, code_name=_name_of(_driver(), code))


def _name_of(library: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return (name.value or b"an unknown CUresult").decode()
