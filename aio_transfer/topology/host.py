"""Files and environment of a machine, read from ``/sys``, ``/proc`` and ``os.environ``."""

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
    """The files and the environment of a machine; tests give a made-up one."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def path(self, name: str) -> Path:
        """Return where the file of that absolute name is."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return a file's text without outer white space, or ``None`` where it is not or may not be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def entries(self, name: str) -> list[Path]:
        """Return what is in a folder, sorted; nothing where there is no such folder."""
        try:
            return sorted(self.path(name).iterdir())
        except OSError:
            return []

    def rdma_devices(self) -> dict[str, str]:
        """Return the kernel's RDMA devices: name to driver (``"mlx5_core"``, ``"efa"``; ``""`` for software ones)."""
        devices = self.entries("/sys/class/infiniband")
        return {
            device.name: link.resolve().name if (link := device / "device" / "driver").exists() else ""
            for device in devices
        }
