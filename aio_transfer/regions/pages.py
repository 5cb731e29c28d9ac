"""Page lists: many equal pieces of one region, named by number, such as the pages of a KV cache.

Page ``i`` of a region begins at ``offset_nbytes + ids[i] * stride_nbytes`` and is ``page_nbytes`` long. The ids are
checked once, on a copy: what a plan later writes is what was checked.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import numpy as np

from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


__all__ = ("PageList", "unsigned")

INT64_MAX: Final = 2**63 - 1


class _Sized(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


RegionT = TypeVar("RegionT", bound=_Sized)


class PageList(Generic[RegionT]):
    """Common base of :class:`Pages` and :class:`RemotePages`."""

    __slots__ = ("ids", "offset_nbytes", "page_nbytes", "region", "stride_nbytes")

    def __init__(
        self,
        region: RegionT,
        ids: ArrayLike,
        page_nbytes: int,
        *,
        stride_nbytes: int | None = None,
        offset_nbytes: int = 0,
    ) -> None:
        """Check and keep a copy of ``ids``; use ``region.pages``."""
        self.region = region
        self.page_nbytes = _size("page_nbytes", page_nbytes)
        self.stride_nbytes = self.page_nbytes if stride_nbytes is None else _size("stride_nbytes", stride_nbytes)
        self.offset_nbytes = _size("offset_nbytes", offset_nbytes)
        self.ids: NDArray[np.uint64] = unsigned(ids, "page ids")
        if self.ids.size:
            self._require_inside(int(self.ids.max()))

    @property
    def nbytes(self) -> int:
        """Total length of all pages, in bytes."""
        return self.ids.size * self.page_nbytes

    def _write_addresses(self, out: NDArray[np.uint64], base: int) -> None:
        """Write the address of each page, counted from ``base``, into ``out``; no temporary is made."""
        np.multiply(self.ids, np.uint64(self.stride_nbytes), out=out)
        np.add(out, np.uint64(base + self.offset_nbytes), out=out)

    def __len__(self) -> int:
        """Return the number of pages."""
        return self.ids.size

    def __repr__(self) -> str:
        """Show number and size of the pages, and the region."""
        return f"<{type(self).__name__} {len(self)} x {self.page_nbytes} B of {self.region.name}>"

    def _require_inside(self, largest: int) -> None:
        # In Python's integers, so that nothing wraps; then no 64-bit sum in `_write_addresses` can.
        room = self.region.nbytes - self.offset_nbytes - self.page_nbytes
        if room >= 0 and (self.stride_nbytes == 0 or largest <= room // self.stride_nbytes):
            return
        limit = room // self.stride_nbytes if room >= 0 else -1
        index = int(np.argmax(self.ids > np.uint64(limit))) if limit >= 0 else 0
        value = int(self.ids[index])
        begin = self.offset_nbytes + value * self.stride_nbytes
        message = (
            f"page ids[{index}] = {value} lies at bytes {begin} … {begin + self.page_nbytes} of {self.region.name}, "
            f"which has {self.region.nbytes} B" + (f": the largest id is {limit}" if limit >= 0 else "")
        )
        raise UsageError(message)


def unsigned(values: ArrayLike, what: str) -> NDArray[np.uint64]:
    """Copy integers of any kind into a one-dimensional uint64 array.

    :param values: a list, tuple or range of ints, or an integer array; never bools or floats
    :raises UsageError: it is anything else, or one is negative or beyond 64 bits; the first such one is named
    """
    array = _as_array(values, what)
    if array.ndim != 1:
        message = f"{what} must be one-dimensional; they have shape {array.shape}"
        raise UsageError(message)
    if array.dtype.kind == "u":
        copy = array.astype(np.uint64, copy=True)
    elif array.dtype.kind == "i":
        signed = array.astype(np.int64, copy=True)
        if signed.size and signed.min() < 0:
            index = int(np.argmax(signed < 0))
            message = f"{what}[{index}] = {signed[index]} is negative"
            raise UsageError(message)
        copy = signed.view(np.uint64)
    else:
        copy = _from_sequence(values, array, what)
    copy.flags.writeable = False
    return copy


def _size(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        message = f"{name} must be an integer, not {value!r}"
        raise UsageError(message) from error
    if not 0 <= number <= INT64_MAX:
        message = f"{name} = {number} is not within 0 … 2**63 - 1"
        raise UsageError(message)
    return number


def _as_array(values: ArrayLike, what: str) -> NDArray[Any]:
    try:
        if isinstance(values, range):  # as a sequence it would be read number by number
            return np.arange(values.start, values.stop, values.step, dtype=np.int64)
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        message = f"{what} cannot be read as integers: {error}"
        raise UsageError(message) from error


def _from_sequence(values: ArrayLike, array: NDArray[Any], what: str) -> NDArray[np.uint64]:
    """Convert a sequence that NumPy did not read as integers: an empty one, or large numbers read as floats."""
    if not isinstance(values, Sequence):
        message = f"{what} must be integers, not {array.dtype}"
        raise UsageError(message)
    for index, value in enumerate(values):
        integral = hasattr(value, "__index__") and not isinstance(value, (bool, np.bool_))
        if not integral or not 0 <= operator.index(value) < 2**64:
            message = f"{what}[{index}] = {value!r} is not an integer within 0 … 2**64 - 1"
            raise UsageError(message)
    return np.array(values, np.uint64)
