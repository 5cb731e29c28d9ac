"""A simulated fabric that is as unordered as the contract allows, for tests. It is never chosen automatically."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aio_transfer.backends.native import NativeDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_transfer.backends.native._native import Fabric
    from aio_transfer.driver.protocol import Capabilities

__all__ = ("SimDriver", "create")


class SimDriver(NativeDriver):
    """A driver whose NICs are on a simulated fabric."""

    def __init__(
        self, fabric: Fabric | None, on_open: Callable[[Sequence[int]], None] | None, **options: object
    ) -> None:
        """Remember where it belongs.

        :param on_open: told what the fabric calls its NICs
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
    """Make an unopened driver on a simulated fabric.

    :param fabric: for :class:`aio_transfer.testing.SimFabric`; without it, the fabric that all engines of this process
        share and that reaches other processes, with a worker thread per engine
    :param options: ``nics`` (1 … 8), ``seed``, ``reorder``, ``mtu``, ``max_piece``, ``depth``, ``eagain``,
        ``failed_posts``, ``failed_completions``, ``late_completions``; of the shared fabric, the first engine's count
    """
    return SimDriver(fabric, on_open, **options)
