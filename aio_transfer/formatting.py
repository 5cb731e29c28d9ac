"""Output formatting for the command line: byte sizes, and whether stdout is a terminal."""

from __future__ import annotations

import sys
from typing import Final

__all__ = ("format_size", "stdout_is_terminal")

_KIB: Final = 1024
_FOUR_DIGITS: Final = 1000
"""From here on ``%.3g`` would switch to an exponent: 1,000 … 1,023 of a unit are printed in full."""


def stdout_is_terminal() -> bool:
    """Return whether stdout is a terminal, where tables and progress bars are drawn."""
    return sys.stdout.isatty()


def format_size(nbytes: float) -> str:
    """Format a number of bytes with a binary unit: ``"16 KiB"``."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < _KIB or unit == "GiB":
            break
        nbytes /= _KIB
    return f"{nbytes:.3g} {unit}" if nbytes < _FOUR_DIGITS else f"{nbytes:.0f} {unit}"
