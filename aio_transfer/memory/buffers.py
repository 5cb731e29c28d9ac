"""Registrable memory: the bytes of arrays, tensors and buffers, held in place without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aio_transfer.driver.protocol import LocalMemory
from aio_transfer.errors import ClosedError, UsageError
from aio_transfer.gpu.dmabuf import DeviceBuffer, DmaBuf
from aio_transfer.memory.allocation import find_allocation
from aio_transfer.memory.dlpack import SupportsDlpack, cuda_array_bytes, dlpack_bytes, dlpack_device_bytes, is_on_cuda

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aio_transfer.driver.records import Access

__all__ = ("Buffer", "memory_of")


class Buffer:
    """Bytes of an object, held in place until :meth:`release`.

    :ivar owner: the object they belong to, kept alive
    :ivar readonly: peers may read them, nobody may write
    :ivar allocation: the shareable allocation that contains them, or ``None``
    """

    __slots__ = ("_array", "address", "allocation", "nbytes", "owner", "readonly")

    def __init__(self, owner: object, array: NDArray[np.uint8]) -> None:
        """Take one-dimensional bytes that keep their memory alive; use :func:`memory_of`."""
        self._array: NDArray[np.uint8] | None = array
        self.owner: object | None = owner
        self.address = int(array.__array_interface__["data"][0])
        self.nbytes = array.nbytes
        self.readonly = not array.flags.writeable
        self.allocation = find_allocation(self.address, self.nbytes)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, one-dimensional. An array taken from here holds them beyond :meth:`release`.

        :raises ClosedError: after :meth:`release`
        """
        if self._array is None:
            raise ClosedError(repr(self))
        return self._array

    def local_memory(self, access: Access) -> LocalMemory:
        """Return the form in which a driver registers it.

        :raises ClosedError: after :meth:`release`, or when the allocation was closed meanwhile
        """
        if self._array is None:
            raise ClosedError(repr(self))
        home = self.allocation
        if home is None:
            return LocalMemory(addr=self.address, nbytes=self.nbytes, access=access)
        offset = self.address - home.address
        return LocalMemory(addr=self.address, nbytes=self.nbytes, access=access, fd=home.fd, fd_offset=offset)

    def release(self) -> None:
        """Release the object and its buffer export. Idempotent."""
        self._array = self.owner = self.allocation = None

    def __repr__(self) -> str:
        """Show address, size and type of the owner."""
        return f"<Buffer {self.address:#x} {self.nbytes} B of {type(self.owner).__name__}>"


def memory_of(obj: object) -> Buffer | DeviceBuffer:
    """Find the bytes of an object and hold them there: no copy, and no resize or ``close`` of the object meanwhile.

    Only ``torch.Tensor.resize_`` ignores exports; do not call it on memory that is registered.

    :param obj: a NumPy array, anything with ``__dlpack__`` in host or CUDA memory (torch, jax, CuPy), anything with
        ``__cuda_array_interface__``, a :class:`DmaBuf`, or anything with the buffer protocol (``bytearray``,
        ``memoryview``, ``mmap``, ``array.array``, ``bytes``); C-contiguous
    :raises UsageError: no memory, an empty object, memory that is not contiguous, or that holds Python objects
    :raises UnsupportedError: memory of another device, or memory that its driver does not export
    :raises BackendUnavailableError: there is no CUDA driver
    """
    if isinstance(obj, np.ndarray):
        array = _array_bytes(obj)
    elif isinstance(obj, DmaBuf):
        return DeviceBuffer.of_dmabuf(obj)
    elif isinstance(obj, SupportsDlpack):
        if is_on_cuda(obj):
            return DeviceBuffer.of_cuda(obj, dlpack_device_bytes(obj))
        array = dlpack_bytes(obj)
    elif hasattr(obj, "__cuda_array_interface__"):
        return DeviceBuffer.of_cuda(obj, cuda_array_bytes(obj))
    else:
        array = _buffer_bytes(obj)
    if array.nbytes == 0:
        message = f"{type(obj).__name__} of 0 bytes has no memory to register"
        raise UsageError(message)
    return Buffer(obj, array)


def _array_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype.hasobject:
        message = f"an array of dtype {array.dtype} holds references, not bytes"
        raise UsageError(message)
    if not array.flags.c_contiguous:
        message = f"memory must be C-contiguous; shape {array.shape} has strides {array.strides} (in bytes)"
        raise UsageError(message)
    if array.nbytes == 0:
        return np.empty(0, np.uint8)
    return array.view(np.ndarray).reshape(-1).view(np.uint8)


def _buffer_bytes(obj: object) -> NDArray[np.uint8]:
    try:
        view = memoryview(obj)  # type: ignore[arg-type]
    except (TypeError, BufferError, ValueError) as error:
        message = f"{type(obj).__name__} has no memory to register: {error}"
        raise UsageError(message) from error
    if not view.c_contiguous:
        message = f"memory must be C-contiguous; shape {view.shape} has strides {view.strides} (in bytes)"
        raise UsageError(message)
    if "O" in view.format:
        message = f"a {type(obj).__name__} of format {view.format!r} holds references, not bytes"
        raise UsageError(message)
    # The array holds `view`, and that the export: a bytearray cannot be resized, an mmap cannot be closed.
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
