"""Options of the pyverbs backend."""

from __future__ import annotations

from typing import Final

from aio_transfer.driver.options import Option, OptionTable

__all__ = ("OPTIONS",)

OPTIONS: Final = OptionTable(
    Option("device", str, "", "Name of the device, as `ibv_devices` lists it. Not given: any."),
    Option(
        "address",
        str,
        "",
        "IPv4 or IPv6 address of the port. Not given: of the active ports with a RoCE v2 or InfiniBand GID, first one "
        "with an IPv4 address, then with another address, a link-local one, and one of a loopback device.",
    ),
)
