"""Thread count of NumPy's matrix products.

The count decides how OpenBLAS splits long matrices, and so how sums are rounded: processes that must compute the same
bits need the same count. One thread per core in each of several processes is also slow, because OpenBLAS spins while it
waits: two prefill processes on two cores took 9.5 s instead of 1.3 s.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("blas_threads",)

SYMBOLS: Final = (
    ("scipy_openblas_{}_num_threads64_", "openblas"),  # NumPy's wheels since 1.26
    ("scipy_openblas_{}_num_threads", "openblas"),
    ("openblas_{}_num_threads64_", "openblas"),
    ("openblas_{}_num_threads", "blas"),  # Debian's and conda's, whose file may be named libblas.so.3
)


@contextmanager
def blas_threads(count: int) -> Iterator[bool]:
    """Use ``count`` threads for the matrix products of this process inside the block.

    Set by a call into the loaded OpenBLAS, which reads its environment variables only when it is loaded.

    :returns: whether OpenBLAS was found; other libraries keep their setting
    """
    found = _find_openblas()
    if found is None:
        yield False
        return
    read, write = found
    before = read()
    write(count)
    try:
        yield True
    finally:
        write(before)


def _find_openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return OpenBLAS's functions that get and set the thread count, or ``None`` if it is not loaded."""
    libraries = sorted(set(re.findall(r"/\S*blas\S*\.so\S*", Path("/proc/self/maps").read_text(encoding="utf-8"))))
    for symbol, part in SYMBOLS:
        for path in libraries:
            if part not in Path(path).name:
                continue
            library = ctypes.CDLL(path)
            if hasattr(library, symbol.format("set")) and hasattr(library, symbol.format("get")):
                return library[symbol.format("get")], library[symbol.format("set")]
    return None
