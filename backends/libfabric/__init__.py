"""libfabric backend: EFA on AWS and TCP, through a libfabric loaded at run time. ``README.md`` describes quirks."""

import importlib.metadata
import sys
from pathlib import Path

from aio_transfer.backends.libfabric.options import OPTIONS
from aio_transfer.backends.native import NativeDriver
from aio_transfer.driver.backend import Backend

__all__ = ("BACKEND", "create")


def create(*, near: str = "", topology: str = "", **options: object) -> NativeDriver:
    """Make an unopened driver from checked options.

    :raises UsageError: no device is near what ``near`` names
    """
    chosen: dict[str, object] = {}
    if near:
        from aio_transfer.backends.libfabric.nearest import nearest_devices_here

        nearest = nearest_devices_here(near, topology)
        chosen["rails"] = len(nearest.devices)
        chosen["cpus"] = nearest.cores
        chosen["interfaces"] = tuple(f"{device}-rdm" for device in nearest.devices)
    return NativeDriver("libfabric", {"search": ":".join(_wheel_libraries())} | chosen | options)


def _wheel_libraries() -> list[str]:
    """Find the library in the ``mpich`` wheel, which the extra ``libfabric`` installs."""
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(str(file.locate())) for file in files if file.name == "libfabric.so.1"]
    paths.append(Path(sys.prefix, "lib", "mpich", "libfabric.so.1"))
    return list(dict.fromkeys(str(path.resolve()) for path in paths if path.is_file()))


BACKEND = Backend(
    name="libfabric",
    create=create,
    options=OPTIONS,
    automatic=True,
    summary="Elastic Fabric Adapter on AWS, and TCP sockets, through libfabric.",
)
