"""Shareable allocations: zero-filled memory in a memfd that a peer on the same host can map.

A peer maps the very pages through the fd, nothing has a name in ``/dev/shm``, and after ``kill -9`` the kernel frees
everything.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import operator
import os
import re
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aio_transfer.errors import BackendUnavailableError, ClosedError, ProviderError, UsageError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ("Allocation", "allocate", "allocate_array", "find_allocation")

MAX_NBYTES: Final = 2**63 - 1
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""A peer that holds the fd can neither resize the file (SIGBUS here) nor add a seal against writes."""
HINTS: Final = {
    errno.EMFILE: "this process has no file descriptor left: raise `ulimit -n`",
    errno.ENFILE: "the system has no file descriptor left: raise `sysctl fs.file-max`",
    errno.ENOMEM: "out of memory or address space: see `ulimit -v`, `sysctl vm.overcommit_memory vm.nr_hugepages`",
    errno.EFBIG: "beyond the file size limit: see `ulimit -f`",
}


class _Mapping(mmap.mmap):
    """The base of every view of the memory: it is unmapped after the last view is gone, never before."""

    address: int
    nbytes: int
    fd: int
    closer: weakref.finalize[..., _Mapping]


# By fd: an open fd's number is not reused; an address can be, between munmap and here.
_live: weakref.WeakValueDictionary[int, _Mapping] = weakref.WeakValueDictionary()


class Allocation:
    """Shareable memory: an fd and a mapping of it, zero-filled and page-aligned."""

    __slots__ = ("_mapping",)

    def __init__(self, mapping: _Mapping) -> None:
        """Stand for a mapping; use :func:`allocate`."""
        self._mapping = mapping

    @property
    def address(self) -> int:
        """Address in this process."""
        return self._mapping.address

    @property
    def nbytes(self) -> int:
        """Requested length in bytes; with huge pages the file may be longer."""
        return self._mapping.nbytes

    @property
    def fd(self) -> int:
        """The memfd; duplicate it to keep it beyond :meth:`close`.

        :raises ClosedError: after :meth:`close`
        """
        if self.closed:
            raise ClosedError(repr(self))
        return self._mapping.fd

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._mapping.closer.alive

    def array(self, shape: int | Sequence[int] | None = None, dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """View the memory as an array, which keeps it mapped for as long as the array lives.

        :param shape: in elements; ``None`` for one dimension with all of it
        :raises UsageError: it is larger than the allocation, or ``dtype`` holds objects
        :raises ClosedError: after :meth:`close`
        """
        kind = np.dtype(dtype)
        if kind.hasobject or kind.itemsize == 0:
            message = f"dtype {kind} cannot be placed in shared memory"
            raise UsageError(message)
        extents = (self.nbytes // kind.itemsize,) if shape is None else _extents(shape)
        count = math.prod(extents)
        if any(extent < 0 for extent in extents) or count * kind.itemsize > self.nbytes or not count:
            message = f"shape {shape} of {kind} does not fit into {self.nbytes} B"
            raise UsageError(message)
        if self.closed:
            raise ClosedError(repr(self))
        return np.frombuffer(self._mapping, kind, count).reshape(extents)

    def close(self) -> None:
        """Close the fd. Idempotent; the pages stay mapped until the last array of them is gone."""
        if not self.closed:
            _live.pop(self._mapping.fd, None)
            self._mapping.closer()

    def __repr__(self) -> str:
        """Show address and size."""
        return f"<Allocation {self.address:#x} {self.nbytes} B>"


def allocate(nbytes: int, *, huge_pages: bool = False) -> Allocation:
    """Make zero-filled memory that a peer on this host can map.

    Pages are supplied on first touch, as for any mapping; huge pages are reserved immediately.

    :param nbytes: 1 … 2**63 − 1
    :param huge_pages: use the system's default huge page size; there is no silent fallback
    :raises UsageError: ``nbytes`` is out of range
    :raises BackendUnavailableError: this system has no memfd
    :raises ProviderError: a limit on memory or file descriptors was hit; ``code`` is the errno, the message says which
    """
    if not 0 < nbytes <= MAX_NBYTES:
        message = f"cannot allocate {nbytes} B: 1 … 2**63 - 1 B are possible"
        raise UsageError(message)
    if not hasattr(os, "memfd_create"):
        raise BackendUnavailableError("memfd", f"{sys.platform} has no memfd_create", "run on Linux")
    unit = _huge_page_nbytes() if huge_pages else 1
    try:
        return Allocation(_map(nbytes, -(-nbytes // unit) * unit, huge_pages=huge_pages))
    except (OSError, OverflowError, ValueError) as error:
        code = error.errno or 0 if isinstance(error, OSError) else errno.ENOMEM
        name = errno.errorcode.get(code, "error")
        reason = HINTS.get(code, str(error))
        raise ProviderError("allocation", nbytes=nbytes, code=code, code_name=f"{name}, {reason}") from error


def allocate_array(
    shape: int | Sequence[int], dtype: DTypeLike = np.uint8, *, huge_pages: bool = False
) -> NDArray[Any]:
    """Make a zeroed array in shareable memory, which lives as long as the array.

    :param shape: in elements of ``dtype``
    :raises UsageError: it would be empty
    :raises ProviderError: a limit on memory or file descriptors was hit
    """
    extents = _extents(shape)
    kind = np.dtype(dtype)
    return allocate(math.prod(extents) * kind.itemsize, huge_pages=huge_pages).array(extents, kind)


def find_allocation(address: int, nbytes: int) -> Allocation | None:
    """Return the open allocation that contains these bytes entirely, if there is one.

    Found by address, because a tensor made from one of our arrays does not record where its memory came from. The
    search takes 0.1 µs per allocation, which is small beside the registration that follows.
    """
    for reference in _live.valuerefs():
        mapping = reference()
        if mapping is not None and mapping.address <= address <= mapping.address + mapping.nbytes - nbytes:
            return Allocation(mapping)
    return None


def _map(nbytes: int, file_nbytes: int, *, huge_pages: bool) -> _Mapping:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge_pages else 0)
    fd = os.memfd_create("aio-transfer", flags)
    try:
        os.ftruncate(fd, file_nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        if sys.version_info >= (3, 13):
            mapping = _Mapping(fd, file_nbytes, trackfd=False)
        else:  # keeps a second fd of its own, until it is unmapped
            mapping = _Mapping(fd, file_nbytes)
    except BaseException:
        os.close(fd)
        raise
    mapping.address = int(np.frombuffer(mapping, np.uint8, 1).__array_interface__["data"][0])
    mapping.nbytes, mapping.fd = nbytes, fd
    _live[fd] = mapping
    mapping.closer = weakref.finalize(mapping, os.close, fd)
    mapping.closer.atexit = False  # arrays may be in use until the process ends, and then the kernel closes it
    return mapping


def _extents(shape: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(map(operator.index, shape)) if isinstance(shape, Sequence) else (operator.index(shape),)


def _huge_page_nbytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"^Hugepagesize:\s+(\d+) kB", file.read(), re.MULTILINE)
    if found is None:
        raise BackendUnavailableError("memfd", "this kernel has no huge pages")
    return int(found[1]) * 1024
