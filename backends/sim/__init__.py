"""sim backend: a simulated fabric for tests, as unordered as the contract allows. It is never opened automatically."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aio_transfer.backends.native import NativeDriver
from aio_transfer.backends.sim.options import OPTIONS
from aio_transfer.driver.backend import Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_transfer.backends.native._native import Fabric
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
        super().__init__("sim", options, fabric=fabric)
        self._on_open = on_open

    def open(self) -> Capabilities:
        """Join the fabric."""
        capabilities = super().open()
        if self._on_open is not None:
            self._on_open(self._core.nodes())
        return capabilities


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
