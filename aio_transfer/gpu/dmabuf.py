"""Memory of a GPU, which NICs reach through a dma-buf and this process's instructions do not."""

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
    """Part of a dma-buf: memory that the driver of a device has exported for others to reach.

    Arrays of CuPy, torch and Numba on a CUDA device need none: ``engine.register`` exports them itself. This is for
    memory of other makers' devices, and for CUDA memory whose export somebody else holds.

    :param fd: the export. ``engine.register`` duplicates it, and leaves yours to you.
    :param address: what its first byte is called here: the device's pointer, or where it is mapped. Within a page of
        the host it lies as ``offset`` does.
    :param nbytes: how much of it is meant
    :param offset: where in the dma-buf that begins
    :param cuda_device: the number of the CUDA device whose memory it is; ``None`` for memory that this process reaches
        at ``address``
    :raises UsageError: the numbers cannot mean anything
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
    """A dma-buf, and the object whose memory it is, held until :meth:`release`; a driver registers it.

    :ivar owner: the object, kept alive
    :ivar readonly: peers may read it, nobody may write
    """

    __slots__ = ("_dmabuf", "address", "nbytes", "owner", "readonly")

    def __init__(self, owner: object, dmabuf: DmaBuf, *, readonly: bool = False) -> None:
        """Take a dma-buf whose fd is ours from now on."""
        self._dmabuf: DmaBuf | None = dmabuf
        self.owner: object | None = owner
        self.address = dmabuf.address
        self.nbytes = dmabuf.nbytes
        self.readonly = readonly

    @classmethod
    def of_dmabuf(cls, dmabuf: DmaBuf) -> DeviceBuffer:
        """Duplicate the fd of a dma-buf of the caller's.

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
        # What exports the memory keeps it; some makers of arrays have one object for that and another for users.
        return cls((owner, memory.keeper), part, readonly=memory.readonly)

    @property
    def array(self) -> NoReturn:
        """Nothing: these bytes are not this process's to read.

        :raises UnsupportedError: always
        """
        raise UnsupportedError("looking at device memory", needs="host memory", has=repr(self))

    def local_memory(self, access: Access) -> LocalMemory:
        """Put it in the form in which a driver registers it.

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
        """Let go of the object, and close the fd. Idempotent."""
        part, self._dmabuf, self.owner = self._dmabuf, None, None
        if part is not None:
            os.close(part.fd)

    def __repr__(self) -> str:
        """Say where and how large."""
        return f"<DeviceBuffer {self.address:#x} {self.nbytes} B>"


class DeviceBytes(NamedTuple):
    """Where an array's bytes lie, in the words of its device.

    :ivar keeper: what keeps them there for as long as it lives
    """

    address: int
    nbytes: int
    readonly: bool
    keeper: object
