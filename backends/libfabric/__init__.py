"""libfabric, loaded at run time: plain TCP everywhere, EFA on AWS. ``README.md`` lists settings and quirks."""

import importlib.metadata
import sys
from pathlib import Path

from aio_transfer.backends.core import NativeDriver

__all__ = ("create",)


def create(**options: object) -> NativeDriver:
    """Make an unopened libfabric driver.

    :param options: ``provider`` (``"tcp"``, ``"efa"``), ``address`` or ``interface``, ``rails``, ``library``; all of
        them in ``backends/libfabric/domain.h``
    """
    given = {name: value for name, value in options.items() if value is not None}
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
