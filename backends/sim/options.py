"""Options of the sim backend."""

from __future__ import annotations

from typing import Final

from aio_transfer.backends.native.options import PROGRESS, SPIN_US
from aio_transfer.driver.options import Option, OptionTable

__all__ = ("OPTIONS",)

OPTIONS: Final = OptionTable(
    Option("nics", int, 1, "Number of simulated NICs, of unequal speed.", minimum=1, maximum=8),
    Option(
        "seed",
        int,
        None,
        "Seed of all random choices. Not given: a random one. This option and those down to `bug` belong to the fabric "
        "that all engines of a process share, so the first engine sets them.",
        minimum=0,
        maximum=2**64 - 1,
    ),
    Option(
        "reorder",
        float,
        1.0,
        "Probability that the next packet is a random one, and not the oldest.",
        minimum=0,
        maximum=1,
    ),
    Option("mtu", int, 8192, "Size of a packet.", unit="bytes", minimum=1, maximum=32 << 10),
    Option(
        "max_piece",
        int,
        0,
        "A larger chunk is split into pieces of this size, which travel and complete on their own. 0: no limit.",
        unit="bytes",
        minimum=0,
        maximum=2**64 - 1,
    ),
    Option("depth", int, 256, "Pieces in flight per NIC and peer; further ones wait.", minimum=1, maximum=1 << 20),
    Option(
        "eagain",
        float,
        0.0,
        "Probability that a post finds the queue full and is tried again; 1 counts as 0.95.",
        minimum=0,
        maximum=1,
    ),
    Option("failed_posts", float, 0.0, "Probability that a piece fails when it is posted.", minimum=0, maximum=1),
    Option(
        "failed_completions",
        float,
        0.0,
        "Probability that a piece fails after half of its bytes were written.",
        minimum=0,
        maximum=1,
    ),
    Option(
        "late_completions",
        float,
        0.25,
        "Probability that a completion, a count or a release is reported later than it could be; 1 counts as 0.95.",
        minimum=0,
        maximum=1,
    ),
    Option(
        "bug",
        str,
        None,
        "A deliberate violation of the contract, to prove that a test suite finds it.",
        choices=("count_before_payload", "error_before_stop", "accept_stale", "skip_fence"),
    ),
    Option(
        "fabric",
        object,
        None,
        "The fabric to join; `aio_transfer.testing.SimFabric` sets it. Not given: the fabric that all engines of this "
        "process share and that reaches other processes, with a worker thread per engine.",
    ),
    Option(
        "on_open",
        object,
        None,
        "Function that is called with the fabric's numbers of the engine's NICs; `aio_transfer.testing.SimFabric` sets "
        "it.",
    ),
    PROGRESS,
    SPIN_US,
)
