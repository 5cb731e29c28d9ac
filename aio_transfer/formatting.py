"""Output formatting shared by the command line tools: byte sizes, and whether stdout is a terminal."""

from __future__ import annotations

import sys

__all__ = ("on_terminal", "size")


def on_terminal() -> bool:
    """Return whether a person is looking at the output."""
    return sys.stdout.isatty()


def size(nbytes: float) -> str:
    """Return a number of bytes for people: ``"16 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":  # noqa: PLR2004 - bytes in a KiB
            return f"{nbytes:.3g} {unit}" if nbytes < 1000 else f"{nbytes:.0f} {unit}"  # noqa: PLR2004
        nbytes /= 1024
    raise AssertionError
