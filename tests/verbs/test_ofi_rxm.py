"""The contract on libfabric's verbs provider, which Soft-RoCE has a port for. Not kept yet: see ``docs/proof.md``.

``python tests/vm --env OFI_RXM=1 python -m pytest --timeout 300 tests/verbs/test_ofi_rxm.py``, in a process of its own:
libfabric reads most of what ``ofi_rxm`` is told as it is loaded, for whichever provider that was.
"""

from __future__ import annotations

import os

import pytest

from aio_transfer.testing import Spec
from aio_transfer.testing.plugin import contract

SPEC = Spec(
    backend="libfabric",
    options={"provider": "verbs;ofi_rxm", "unproven": True, "address": "10.0.0.1"},
    name="ofi-rxm",
)
pytestmark = pytest.mark.skipif("OFI_RXM" not in os.environ, reason="fails: no endpoint can be enabled on Soft-RoCE")

test_contract = contract(SPEC, schedules=20, seeds=(1, 2, 3))
