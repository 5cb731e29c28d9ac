"""Result of one check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ("HostCheck", "Status", "version_numbers")

Status: TypeAlias = Literal["ok", "warn", "fail", "skip"]
"""``warn``: something optional, or fast, will not work. ``fail``: what every machine needs does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCheck:
    """Result of one check.

    :param fix: the command that fixes it; empty if there is nothing to fix
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def version_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a version: ``"2.10.0g"`` is ``(2, 10, 0)``."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
