"""sim backend: a simulated fabric for tests, as unordered as the contract allows. It is never opened automatically."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from aio_transfer.backends.native import NativeDriver
from aio_transfer.backends.native._native import SimCore
from aio_transfer.backends.sim.options import OPTIONS
from aio_transfer.driver.backend import Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_transfer.backends.native._native import Fabric, NativeCore
    from aio_transfer.driver.protocol import Capabilities

__all__ = ("BACKEND", "SimDriver", "create")


class SimDriver(NativeDriver):
    """A driver whose NICs are on a simulated fabric."""

    def __init__(
        self, fabric: Fabric | None, on_open: Callable[[Sequence[int]], None] | None, **options: object
    ) -> None:
        """Remember what to open.

        :param on_open: called with the fabric's numbers of our NICs
        """
        super().__init__("sim", options)
        self._fabric = fabric
        self._on_open = on_open

    def open(self) -> Capabilities:
        """Join the fabric."""
        # No spin-wait: an engine in this process may have to run before the count can come.
        return replace(super().open(), spins=False)

    def _open_core(self) -> NativeCore:
        core = SimCore(self._fabric, self._options)
        if self._on_open is not None:
            self._on_open(core.nodes())
        return core


def create(
    *, fabric: Fabric | None = None, on_open: Callable[[Sequence[int]], None] | None = None, **options: object
) -> SimDriver:
    """Make an unopened driver from checked options."""
    return SimDriver(fabric, on_open, **options)


BACKEND = Backend(
    name="sim",
    create=create,
    options=OPTIONS,
    summary="Simulated NICs within one host, for tests; see aio_transfer.testing.SimFabric.",
)
