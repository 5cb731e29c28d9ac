"""Settings of one engine, validated before anything is acquired."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from aio_transfer.errors import UsageError

__all__ = ("EngineSettings",)

_MAX_LABEL: Final = 128


class EngineSettings(Struct, frozen=True, kw_only=True):
    """Arguments of :class:`~aio_transfer.TransferEngine`, documented there."""

    backend: str | Sequence[str]
    host: str
    port: int
    advertise: str
    secret: bytes | None
    label: str
    liveness_timeout_s: float
    connect_deadline_s: float
    stall_s: float
    grace_s: float
    options: Mapping[str, Mapping[str, object]]

    def __post_init__(self) -> None:
        """Check every value.

        :raises UsageError: naming the argument, its value and what is allowed
        """
        for name in ("liveness_timeout_s", "connect_deadline_s", "stall_s", "grace_s"):
            value = getattr(self, name)
            allowed = isinstance(value, int | float) and (value > 0 or (value == 0 and name == "grace_s"))
            if not allowed:  # NaN is not, either
                raise UsageError(f"{name} is {value!r}: a positive number of seconds is needed")
        if not isinstance(self.port, int) or not 0 <= self.port < 1 << 16:
            raise UsageError(f"port is {self.port!r}: allowed are 0 … 65535")
        if self.secret is not None and not self.secret:
            raise UsageError("secret is empty: give None, or at least 16 random bytes")
        printable = self.label.isascii() and self.label.isprintable()
        if len(self.label) > _MAX_LABEL or not printable:
            raise UsageError(f"label is {self.label!r}: printable ASCII of at most {_MAX_LABEL} characters is needed")

    def display_label(self) -> str:
        """Return the engine's name in logs and errors: the label, or ``host:pid``."""
        return self.label or f"{socket.gethostname()[:48]}:{os.getpid()}"
