"""Conformance: every check and random schedules, on every backend of this machine and every event loop."""

from __future__ import annotations

from aio_transfer.testing import Spec
from aio_transfer.testing.plugin import contract

SPECS = (
    Spec(backend="shm", same_host=True),
    Spec(backend="libfabric", options={"provider": "tcp"}, name="libfabric-tcp"),
    Spec(backend="tcp"),
    Spec(backend="tcp", options={"rails": 2}, rails=2, name="tcp-2-rails"),
    Spec(backend="verbs"),
    Spec(backend="verbs", options={"rails": 2}, rails=2, name="verbs-2-rails"),
    Spec(backend="pyverbs"),
    Spec(backend="sim", options={"nics": 3, "mtu": 1500, "depth": 64}, same_host=True, rails=3),
    # The default: two drivers in every engine, shm carries, and counters are sums over both.
    Spec(backend="shm", name="auto", settings={"backend": "auto", "options": {"libfabric": {"provider": "tcp"}}}),
)
"""A backend joins by adding its own here."""

test_contract = contract(*SPECS, schedules=20, seeds=(1, 2, 3))
