"""libfabric, loaded at run time: plain TCP everywhere, EFA on AWS. ``README.md`` lists settings and quirks."""

import importlib.metadata
import sys
from pathlib import Path

from aio_transfer.backends.native import NativeDriver

__all__ = ("create",)


def create(**options: object) -> NativeDriver:
    """Make an unopened libfabric driver.

    :param options: ``provider`` (``"tcp"``, ``"efa"``), ``address`` or ``interface``, ``rails``, ``library``; all of
        them in ``backends/libfabric/domain.h``. With efa also ``near``, a GPU's PCI address or ``"numa0"``: the devices
        nearest to it, all of them unless ``rails`` is given, with the worker on the cores there; and ``topology``, a
        file that tells what is near: ``nearest.py``
    :raises UsageError: nothing is near
    """
    given = {name: value for name, value in options.items() if value is not None}
    near, topology = given.pop("near", None), given.pop("topology", "")
    if near is not None:
        from aio_transfer.backends.libfabric.nearest import place_of

        place = place_of(str(near), str(topology))
        found: dict[str, object] = {"interfaces": ",".join(f"{device}-rdm" for device in place.devices)}
        given = {"rails": len(place.devices), "cpus": ",".join(map(str, place.cores))} | found | given
    return NativeDriver("libfabric", {"search": ":".join(_wheel_libraries()), **given})


def _wheel_libraries() -> list[str]:
    """Find the library that the ``mpich`` wheel carries, which is what the extra ``libfabric`` installs.

    :source: design.md section 5
    """
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(str(file.locate())) for file in files if file.name == "libfabric.so.1"]
    paths.append(Path(sys.prefix, "lib", "mpich", "libfabric.so.1"))
    return list(dict.fromkeys(str(path.resolve()) for path in paths if path.is_file()))
