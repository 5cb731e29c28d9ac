"""The contract on libfabric's verbs provider, which Soft-RoCE has a port for.

``ofi_rxm`` keeps it from libfabric 2.7 on, which is not released, so it has to be built, into a folder of the
environment that the guest gets: ``docs/proof.md`` says how. Until then it calls itself 2.6, which would be refused.
Then ``python tests/vm --env OFI_RXM=LIBRARY python -m pytest -n 2 --timeout 300 tests/verbs/test_ofi_rxm.py``, in a
process of its own: libfabric reads most of what ``ofi_rxm`` is told as it is loaded, for whichever provider that was.
"""

from __future__ import annotations

import os

import pytest

from aio_transfer.testing import Spec
from aio_transfer.testing.plugin import contract

LIBRARY = os.environ.get("OFI_RXM", "")
SPEC = Spec(
    backend="libfabric",
    options={"provider": "verbs;ofi_rxm", "library": LIBRARY, "address": "10.0.0.1", "unproven": True},
    name="ofi-rxm",
)
pytestmark = pytest.mark.skipif(not LIBRARY, reason="OFI_RXM does not name a libfabric whose ofi_rxm is mended")

test_contract = contract(SPEC, schedules=20, seeds=(1, 2, 3))
