"""Options of the libfabric backend."""

from __future__ import annotations

from typing import Final

from aio_transfer.backends.native import WORKER_OPTIONS
from aio_transfer.driver.options import Option, OptionTable

__all__ = ("OPTIONS",)

OPTIONS: Final = OptionTable(
    Option(
        "provider",
        str,
        "tcp",
        "Exact name of the libfabric provider, such as `tcp`, `efa` or `verbs;ofi_rxm`.",
    ),
    Option(
        "unproven",
        bool,
        default=False,
        meaning="Open providers that break the contract too (`README.md` of the backend lists how). Without it only "
        "`tcp`, `efa` on a device with RDMA write, and `verbs;ofi_rxm` from libfabric 2.7 on are opened.",
    ),
    Option(
        "address",
        str,
        None,
        "Source address. Not given: `127.0.0.1` for the IP providers unless `interface` is given; for others the "
        "provider chooses.",
    ),
    Option(
        "interface",
        str,
        None,
        "Name of one libfabric domain, as `aio-transfer devices` shows it under rails.",
    ),
    Option(
        "interfaces",
        list[str],
        None,
        "Names of several libfabric domains, as rails in this order; of them, `rails` says how many are used.",
    ),
    Option(
        "fabric",
        str,
        None,
        "Name of the libfabric fabric. Not given, on `efa`: the first that offers RDMA, `efa-direct` and then `efa`.",
    ),
    Option(
        "rails",
        int,
        1,
        "The largest number of domains (NICs) to use. With `near`, the default is all that are nearest.",
        minimum=1,
        maximum=1_000_000_000,
    ),
    Option(
        "near",
        str,
        None,
        "On `efa`: use the devices that are nearest to this GPU (PCI address such as `0000:53:00.0`) or NUMA node "
        "(`numa0`), and run the worker thread on the cores there. `interfaces`, `rails` and `cpus` override it.",
    ),
    Option(
        "topology",
        str,
        None,
        "With `near`: path of a JSON file that overrides what the kernel reports: "
        '`{"0000:53:00.0": {"devices": ["rdmap79s0"], "cpus": "0-23"}}`.',
    ),
    Option(
        "endpoints",
        str,
        "peer",
        "On `efa`: one endpoint per `peer`, which keeps a lost peer out for certain, or one `shared` endpoint, which "
        "needs fewer device queues.",
        choices=("peer", "shared"),
    ),
    Option(
        "rnr_retry",
        int,
        None,
        "On `efa`: how often the device sends again when the peer has no receive posted; 7 is for ever. Not given: the "
        "provider's default.",
        minimum=0,
        maximum=7,
    ),
    Option(
        "huge_pages",
        bool,
        None,
        "On `efa`: use huge pages for the provider's own buffers (`FI_EFA_USE_HUGE_PAGE`); not together with "
        "`fork_safe`. Only the first engine of a process can set it. Not given: the provider's default.",
    ),
    Option(
        "fork_safe",
        bool,
        None,
        "On `efa` with Linux before 5.13: let the process fork (`FI_EFA_FORK_SAFE`); without it the provider ends a "
        "process that forks. Only the first engine of a process can set it.",
    ),
    Option(
        "depth",
        int,
        256,
        "Operations in flight per peer; no more than the provider allows.",
        minimum=1,
        maximum=1_000_000_000,
    ),
    Option(
        "delivery",
        bool,
        default=True,
        meaning="On `tcp`: a write completes once the peer has it (`FI_DELIVERY_COMPLETE`), and not once the kernel "
        "has it.",
    ),
    Option(
        "post_deadline_s",
        float,
        30.0,
        "Progress timeout: an operation fails when its peer takes nothing for this time.",
        unit="s",
        minimum=0,
        maximum=1e9,
    ),
    Option(
        "verdict_s",
        float,
        5.0,
        "After its connection broke, a peer that does not answer for this time is lost.",
        unit="s",
        minimum=0,
        maximum=1e9,
    ),
    Option(
        "library",
        str,
        None,
        "Path of the one libfabric to load. Not given: the newest of AWS's installation, the dynamic loader's and "
        "those in `search`; for `efa` AWS's own first.",
    ),
    Option(
        "search",
        str,
        None,
        "Paths of further libfabric libraries to consider, separated by colons. Not given: that of the `mpich` wheel, "
        "which `pip install 'aio-transfer[libfabric]'` installs.",
    ),
    *WORKER_OPTIONS,
)
