"""The contract on libfabric's verbs provider, which Soft-RoCE has a port for. In a process of its own: see the README.

libfabric reads most of what ``ofi_rxm`` is told as it is loaded, for whichever provider that was.
"""

from __future__ import annotations

import pathlib

import pytest

from aio_transfer.testing import Spec
from aio_transfer.testing.plugin import contract

SPEC = Spec(
    backend="libfabric",
    options={"provider": "verbs;ofi_rxm", "unproven": True, "address": "10.0.0.1"},
    name="libfabric-verbs",
)
pytestmark = pytest.mark.skipif(
    not pathlib.Path("/sys/class/infiniband/rxe_left0").exists(), reason="needs the devices of `python tests/vm`"
)

test_contract = contract(SPEC, schedules=20, seeds=(1, 2, 3))
