"""Options of the verbs backend."""

from __future__ import annotations

from typing import Final

from aio_transfer.backends.native import WORKER_OPTIONS
from aio_transfer.driver.options import Option, OptionTable

__all__ = ("OPTIONS",)

OPTIONS: Final = OptionTable(
    Option(
        "devices",
        list[str],
        None,
        "RDMA ports to use, one rail each and in this order: `mlx5_0` (its first port) or `mlx5_1:2`, as "
        "`aio-transfer devices` shows them. Not given: the fastest port that is up, or several with `rails`.",
    ),
    Option(
        "rails",
        int,
        1,
        "Without `devices`: the largest number of ports to use. Of the ports that are up, the fastest ones of one link "
        "type are taken.",
        minimum=1,
        maximum=64,
    ),
    Option(
        "depth",
        int,
        512,
        "Work requests in flight per peer and rail; no more than the device allows.",
        minimum=2,
        maximum=32768,
    ),
    Option(
        "inline_nbytes",
        int,
        220,
        "Payloads up to this size are copied into the work request, where the device offers that.",
        unit="bytes",
        minimum=0,
        maximum=4096,
    ),
    Option(
        "relaxed_ordering",
        bool,
        default=True,
        meaning="Let the device write a payload to memory in any order (PCIe relaxed ordering), where it offers that.",
    ),
    Option(
        "service_level",
        int,
        0,
        "InfiniBand service level; on RoCE the priority.",
        minimum=0,
        maximum=15,
    ),
    Option(
        "traffic_class",
        int,
        0,
        "Traffic class in the global route header; on RoCE v2 the DSCP and ECN bits.",
        minimum=0,
        maximum=255,
    ),
    Option(
        "timeout",
        int,
        17,
        "Exponent of the acknowledgement timeout: a packet is sent again after 4.096 µs × 2^timeout without an answer. "
        "17 is 0.54 s; 0 waits for ever.",
        minimum=0,
        maximum=31,
    ),
    Option(
        "retries",
        int,
        6,
        "How often a packet without an answer is sent again before its peer is lost. 7 is for ever on `rdma_rxe` of "
        "Linux 6.1.",
        minimum=0,
        maximum=7,
    ),
    Option(
        "rnr_retries",
        int,
        7,
        "How often a packet is sent again when the peer has no receive posted; 7 is for ever.",
        minimum=0,
        maximum=7,
    ),
    Option(
        "port_down_s",
        float,
        2.0,
        "The peers of a port that is down for this time are lost.",
        unit="s",
        minimum=0,
        maximum=1e6,
    ),
    Option(
        "stall_s",
        float,
        30.0,
        "Progress timeout: a peer on whose connection nothing completes for this time, while something is under way, "
        "is lost.",
        unit="s",
        minimum=0,
        maximum=1e6,
    ),
    Option(
        "revoke_s",
        float,
        2.0,
        "When a region is deregistered, the connection of a peer that does not confirm within this time is closed.",
        unit="s",
        minimum=0,
        maximum=1e6,
    ),
    Option(
        "library",
        str,
        "libibverbs.so.1",
        "Path of the libibverbs to load. The default is searched for by the dynamic loader.",
    ),
    *WORKER_OPTIONS,
)
