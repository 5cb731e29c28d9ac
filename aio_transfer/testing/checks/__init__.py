"""Conformance checks, by topic. Importing this package fills :data:`aio_transfer.testing.CHECKS`."""

from aio_transfer.testing.checks.counters import counters, sources, stall_reports, waits
from aio_transfer.testing.checks.groups import barrier, leaving, recreation
from aio_transfer.testing.checks.lifetime import (
    cancellation,
    closing,
    descriptors,
    failures,
    peers,
    regions,
    thread_affinity,
)
from aio_transfer.testing.checks.transfers import bad_input, messages, optional_methods, pages, reads, scatter, writes

__all__ = (
    "bad_input",
    "barrier",
    "cancellation",
    "closing",
    "counters",
    "descriptors",
    "failures",
    "leaving",
    "messages",
    "optional_methods",
    "pages",
    "peers",
    "reads",
    "recreation",
    "regions",
    "scatter",
    "sources",
    "stall_reports",
    "thread_affinity",
    "waits",
    "writes",
)
