"""DLPack and ``__cuda_array_interface__``: address, size and layout of a tensor, read without its library.

NumPy's ``from_dlpack`` knows neither bfloat16 nor float8, the types of KV caches and weights. No type is needed here,
only address, size and layout, so the capsule is read in place. It is never consumed: as long as it lives its producer
keeps the memory, and its destructor releases the memory.

:source: dlpack.h 1.1 (``DLManagedTensor``, ``DLManagedTensorVersioned``); the array API's ``__dlpack__`` protocol
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np

from aio_transfer.errors import UnsupportedError, UsageError
from aio_transfer.gpu.dmabuf import DeviceBytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ("SupportsDlpack", "cuda_array_bytes", "dlpack_bytes", "dlpack_device_bytes", "is_on_cuda")

HOST_DEVICES: Final = {1: "CPU", 3: "CUDA pinned host", 11: "ROCm pinned host"}
"""``DLDeviceType`` of memory that both a NIC and this process reach as ordinary memory."""
CUDA: Final = 2
OTHER_DEVICES: Final = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA managed", 14: "oneAPI"}
READ_ONLY_FLAG: Final = 1
NO_SYNCHRONIZATION: Final = -1
"""The ``stream`` argument for an export that waits for no stream: the bytes are not read now."""
KNOWN_MAJOR: Final = 1


@runtime_checkable
class SupportsDlpack(Protocol):
    """An array of any library that implements the array API's exchange protocol."""

    def __dlpack__(self, **options: object) -> object:
        """Return a capsule."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return device type and number."""
        ...


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


# Prototypes of our own: the function objects of `ctypes.pythonapi` are shared, and others set other types on them.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi),
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi),
)


def dlpack_bytes(tensor: SupportsDlpack) -> NDArray[np.uint8]:
    """View a tensor's bytes as an array, which keeps them in place for as long as it lives.

    :raises UnsupportedError: the tensor is not in host memory
    :raises UsageError: it is not C-contiguous, or its library refuses to export it (requires grad, sparse …)
    """
    memory = _bytes_of(tensor, HOST_DEVICES)
    if not memory.nbytes:
        return np.empty(0, np.uint8)
    return np.asarray(_Memory(memory.keeper, memory.address, memory.nbytes, readonly=memory.readonly))


def is_on_cuda(tensor: SupportsDlpack) -> bool:
    """Whether a tensor's memory is on a CUDA device; managed memory may be anywhere, and does not count."""
    return _device_of(tensor)[0] == CUDA


def dlpack_device_bytes(tensor: SupportsDlpack) -> DeviceBytes:
    """Return the address and size of a CUDA tensor. It waits for no stream.

    :raises UsageError: as :func:`dlpack_bytes`
    """
    return _bytes_of(tensor, {CUDA: "CUDA"}, stream=NO_SYNCHRONIZATION)


def cuda_array_bytes(array: object) -> DeviceBytes:
    """Return the address and size of an array with ``__cuda_array_interface__`` (Numba's). It waits for no stream.

    :raises UsageError: it is not C-contiguous, or its description is malformed
    :source: the CUDA array interface, version 3
    """
    try:
        said: dict[str, Any] = array.__cuda_array_interface__  # type: ignore[attr-defined]
        address, readonly = said["data"]
        shape, kind, strides = tuple(map(int, said["shape"])), np.dtype(said["typestr"]), said.get("strides")
        if strides is not None:
            strides = tuple(int(stride) // kind.itemsize for stride in strides)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        message = f"__cuda_array_interface__ of {type(array).__name__} is malformed: {error!r}"
        raise UsageError(message) from error
    nbytes = math.prod(shape) * kind.itemsize
    if nbytes:
        _require_contiguous(shape, strides)
    return DeviceBytes(int(address), nbytes, bool(readonly), array)


def _bytes_of(tensor: SupportsDlpack, devices: Mapping[int, str], **options: object) -> DeviceBytes:
    _require_device(_device_of(tensor), devices)
    capsule = _export(tensor, **options)
    inner, readonly = _read(capsule)
    shape = tuple(inner.shape[: inner.ndim])
    nbytes = (math.prod(shape) * inner.bits * inner.lanes + 7) // 8
    if nbytes:
        _require_contiguous(shape, tuple(inner.strides[: inner.ndim]) if inner.strides else None)
    return DeviceBytes((inner.data or 0) + inner.byte_offset, nbytes, readonly, capsule)


class _Memory:
    """The base of an array over a capsule's bytes: it keeps the capsule alive."""

    def __init__(self, capsule: object, address: int, nbytes: int, *, readonly: bool) -> None:
        self._capsule = capsule
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, readonly)}


@contextlib.contextmanager
def _refusing(tensor: SupportsDlpack) -> Iterator[None]:
    try:
        yield
    except (BufferError, RuntimeError, TypeError, ValueError) as error:  # torch: "use tensor.detach()" and the like
        message = f"{type(tensor).__name__} does not export its memory: {error}"
        raise UsageError(message) from error


def _device_of(tensor: SupportsDlpack) -> tuple[int, int]:
    with _refusing(tensor):
        kind, number = tensor.__dlpack_device__()
    return int(kind), number


def _export(tensor: SupportsDlpack, **options: object) -> object:
    with _refusing(tensor):
        try:
            return tensor.__dlpack__(max_version=(KNOWN_MAJOR, 0), **options)
        except TypeError:  # producers older than DLPack 1.0 do not know the keyword
            return tensor.__dlpack__(**options)


def _require_device(device: tuple[int, int], devices: Mapping[int, str]) -> None:
    kind, number = device
    if kind not in devices:
        name = OTHER_DEVICES.get(kind, "unknown")
        raise UnsupportedError(
            "registering device memory",
            needs=f"host memory ({', '.join(HOST_DEVICES.values())}), or a CUDA device's",
            has=f"{name} device {number} (DLPack type {kind})",
        )


def _read(capsule: object) -> tuple[_Tensor, bool]:
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        if versioned.major != KNOWN_MAJOR:  # the layout behind the version is unknown
            message = f"DLPack version {versioned.major}.{versioned.minor} came, {KNOWN_MAJOR}.x is understood"
            raise UsageError(message)
        return versioned.tensor, bool(versioned.flags & READ_ONLY_FLAG)
    if _is_valid(capsule, b"dltensor"):
        return _Tensor.from_address(_get_pointer(capsule, b"dltensor")), False
    message = f"__dlpack__ returned {type(capsule).__name__}, not a fresh DLPack capsule"
    raise UsageError(message)


def _require_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    if strides is None:
        return
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            message = f"memory must be C-contiguous; shape {shape} has strides {strides} (in elements)"
            raise UsageError(message)
        expected *= extent
