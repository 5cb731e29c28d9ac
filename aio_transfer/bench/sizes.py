"""Byte sizes on the command line: ``4KiB``, ``256MiB``."""

from __future__ import annotations

import re
from typing import Final

from aio_transfer.errors import UsageError

__all__ = ("parse_size", "sweep")

UNITS: Final = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE: Final = re.compile(r"(\d+)\s*(?:([KMG])(?:iB)?|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return a size in bytes.

    :param text: a whole number and ``B``, ``KiB``, ``MiB`` or ``GiB`` (``K``, ``M`` and ``G`` mean the same)
    :raises UsageError: it has another form, or is zero
    """
    found = _SIZE.fullmatch(text.strip())
    nbytes = int(found[1]) * UNITS[(found[2] or "").upper()] if found else 0
    if not nbytes:
        raise UsageError(f"{text!r} is not a size, such as 4096, 4KiB or 16MiB")
    return nbytes


def sweep(first: int, last: int, factor: int = 4) -> tuple[int, ...]:
    """Return sizes from ``first`` to ``last``, each ``factor`` times the one before."""
    sizes = [first]
    while sizes[-1] * factor <= last:
        sizes.append(sizes[-1] * factor)
    return tuple(sizes)
