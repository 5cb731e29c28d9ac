"""The number of threads NumPy's matrix products use.

It decides how long matrices are cut up, and so how sums are rounded: processes that must compute the same bits need the
same number. And several processes with a thread for every core each get in each other's way: OpenBLAS waits spinning
(seen: two prefill processes on two cores took 9.5 s instead of 1.3).
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

SPELLINGS: Final = (
    ("scipy_openblas_{}_num_threads64_", "openblas"),  # NumPy's own wheels since 1.26
    ("scipy_openblas_{}_num_threads", "openblas"),
    ("openblas_{}_num_threads64_", "openblas"),
    ("openblas_{}_num_threads", "blas"),  # Debian's and conda's, where the file may be called libblas.so.3
)


@contextmanager
def blas_threads(count: int) -> Iterator[bool]:
    """Let matrix products of this process use ``count`` threads inside the block.

    It is set in the library that is loaded: its environment variables are only read when it is. Process-wide.

    :returns: whether a library was found that can be told so; other ones than OpenBLAS go on as they are
    """
    found = _find()
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


def _find() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return OpenBLAS's functions that read and write the number, when it is loaded."""
    libraries = sorted(set(re.findall(r"/\S*blas\S*\.so\S*", Path("/proc/self/maps").read_text(encoding="utf-8"))))
    for spelling, part in SPELLINGS:
        for path in libraries:
            if part not in Path(path).name:
                continue
            library = ctypes.CDLL(path)
            if hasattr(library, spelling.format("set")) and hasattr(library, spelling.format("get")):
                return library[spelling.format("get")], library[spelling.format("set")]
    return None
