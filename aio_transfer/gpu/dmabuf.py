"""Device memory as a dma-buf: NICs reach it, this process's CPU instructions do not."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from aio_transfer.driver.protocol import LocalMemory
from aio_transfer.errors import ClosedError, ProviderError, UnsupportedError, UsageError
from aio_transfer.gpu import driver_api

if TYPE_CHECKING:
    from aio_transfer.driver.records import Access

__all__ = ("DeviceBuffer", "DeviceBytes", "DmaBuf")


@dataclass(frozen=True, slots=True, kw_only=True)
class DmaBuf:
    """Part of a dma-buf: memory that a device driver has exported to other drivers.

    Arrays of CuPy, torch and Numba on a CUDA device do not need it: ``engine.register`` exports them itself. It is for
    memory of other vendors' devices, and for CUDA memory that was exported elsewhere.

    :param fd: the export. ``engine.register`` duplicates it; closing yours is up to you.
    :param address: of its first byte: the device pointer, or where it is mapped. Its offset within a host page equals
        that of ``offset``.
    :param nbytes: length in bytes
    :param offset: of the first byte in the dma-buf
    :param cuda_device: the number of the CUDA device whose memory it is; ``None`` for memory that this process reaches
        at ``address``
    :raises UsageError: a number is out of range
    """

    fd: int
    address: int
    nbytes: int
    offset: int = 0
    cuda_device: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the device."""
        if min(self.fd, self.address, self.offset) < 0 or self.nbytes <= 0:
            message = f"{self}: fd, address and offset are not negative, and there are bytes"
            raise UsageError(message)
        if (self.address - self.offset) % mmap.PAGESIZE:
            message = f"address {self.address:#x} does not lie within its page as offset {self.offset:#x} does"
            raise UsageError(message)


class DeviceBuffer:
    """A dma-buf and the object that owns its memory, held until :meth:`release`; a driver registers it.

    :ivar owner: the object, kept alive
    :ivar readonly: peers may read it, nobody may write
    """

    __slots__ = ("_dmabuf", "address", "nbytes", "owner", "readonly")

    def __init__(self, owner: object, dmabuf: DmaBuf, *, readonly: bool = False) -> None:
        """Take ownership of a dma-buf's fd."""
        self._dmabuf: DmaBuf | None = dmabuf
        self.owner: object | None = owner
        self.address = dmabuf.address
        self.nbytes = dmabuf.nbytes
        self.readonly = readonly

    @classmethod
    def of_dmabuf(cls, dmabuf: DmaBuf) -> DeviceBuffer:
        """Duplicate the fd of a caller's dma-buf.

        :raises ProviderError: it is not open
        """
        try:
            fd = os.dup(dmabuf.fd)
        except OSError as error:
            raise ProviderError("dup of a dma-buf", code=error.errno or 0, code_name=str(error)) from error
        return cls(dmabuf, replace(dmabuf, fd=fd))

    @classmethod
    def of_cuda(cls, owner: object, memory: DeviceBytes) -> DeviceBuffer:
        """Export memory of a CUDA device.

        :raises AioTransferError: as :func:`aio_transfer.gpu.driver_api.export` does
        """
        if memory.nbytes == 0:
            message = f"{type(owner).__name__} of 0 bytes has no memory to register"
            raise UsageError(message)
        exported = driver_api.export(memory.address, memory.nbytes)
        part = DmaBuf(
            fd=exported.fd,
            address=memory.address,
            nbytes=memory.nbytes,
            offset=exported.offset,
            cuda_device=exported.device,
        )
        # The exporting object keeps the memory; some array libraries have one object for that and another for users.
        return cls((owner, memory.keeper), part, readonly=memory.readonly)

    @property
    def array(self) -> NoReturn:
        """Raise: these bytes cannot be read by this process.

        :raises UnsupportedError: always
        """
        raise UnsupportedError("reading device memory as an array", needs="host memory", has=repr(self))

    def local_memory(self, access: Access) -> LocalMemory:
        """Return the form in which a driver registers it.

        :raises ClosedError: after :meth:`release`
        """
        part = self._dmabuf
        if part is None:
            raise ClosedError(repr(self))
        return LocalMemory(
            addr=part.address,
            nbytes=part.nbytes,
            access=access,
            fd=part.fd,
            fd_offset=part.offset,
            is_dmabuf=True,
            cuda_device=part.cuda_device,
        )

    def release(self) -> None:
        """Release the object and close the fd. Idempotent."""
        part, self._dmabuf, self.owner = self._dmabuf, None, None
        if part is not None:
            os.close(part.fd)

    def __repr__(self) -> str:
        """Show address and size."""
        return f"<DeviceBuffer {self.address:#x} {self.nbytes} B>"


class DeviceBytes(NamedTuple):
    """Address and size of an array's bytes in device memory.

    :ivar keeper: keeps them in place for as long as it lives
    """

    address: int
    nbytes: int
    readonly: bool
    keeper: object
