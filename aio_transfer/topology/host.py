"""Host files and environment: ``/sys``, ``/proc``, ``/dev`` and ``os.environ`` of one machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("Host",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The files and the environment of one machine; tests pass a folder and a dictionary instead.

    :param root: folder that absolute paths are resolved under
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def path(self, name: str) -> Path:
        """Return the path of an absolute file name under ``root``."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return the stripped text of a file, or ``None`` if it is missing or not readable."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def entries(self, name: str) -> list[Path]:
        """Return the entries of a folder, sorted; empty if there is no such folder."""
        try:
            return sorted(self.path(name).iterdir())
        except OSError:
            return []

    def rdma_devices(self) -> dict[str, str]:
        """Return the kernel's RDMA devices: name → driver (``"mlx5_core"``, ``"efa"``; ``""`` for software devices)."""
        devices = self.entries("/sys/class/infiniband")
        return {
            device.name: link.resolve().name if (link := device / "device" / "driver").exists() else ""
            for device in devices
        }
