"""What a check looks at, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ("Check", "Status")

Status: TypeAlias = Literal["ok", "warn", "fail", "skip"]
"""``warn``: something optional, or fast, will not work. ``fail``: what every machine needs does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of one check.

    :param fix: the command that mends it; empty when there is nothing to mend
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
