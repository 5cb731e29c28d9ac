"""Options of the tcp backend."""

from __future__ import annotations

from typing import Final

from aio_transfer.backends.native import WORKER_OPTIONS
from aio_transfer.driver.options import Option, OptionTable

__all__ = ("OPTIONS",)

OPTIONS: Final = OptionTable(
    Option(
        "address",
        list[str],
        None,
        "IPv4 or IPv6 address of this machine where the backend listens and which peers dial; no wildcard. With "
        "several, there is one rail for each. Not given: the engine's `host` where that is an address, else "
        "`127.0.0.1`.",
        from_host=True,
    ),
    Option(
        "rails",
        int,
        None,
        "Number of rails, each with a listener and a connection of its own; they take the addresses in turn. Not "
        "given: one per address. A NIC that one core cannot saturate needs 2.",
        minimum=1,
        maximum=8,
    ),
    Option(
        "connect_s",
        float,
        10.0,
        "Connect timeout: a peer with which no connection is made within this time is lost.",
        unit="s",
        minimum=0.01,
        maximum=1e6,
    ),
    Option(
        "post_deadline_s",
        float,
        30.0,
        "Progress timeout: a peer that neither takes nor sends a byte for this time, while something is under way, is "
        "lost.",
        unit="s",
        minimum=0.01,
        maximum=1e6,
    ),
    *WORKER_OPTIONS,
)
