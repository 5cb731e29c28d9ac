"""Every check of the kit on libfabric's own efa provider, over emulated devices: as many as there are."""

from __future__ import annotations

import os

import pytest

from aio_transfer.testing import Spec
from aio_transfer.testing.plugin import contract

DEVICES = int(os.environ.get("EFA_EMULATOR_DEVICES", "1"))

pytestmark = pytest.mark.skipif(
    "EFA_EMULATOR_LOG" not in os.environ, reason="no emulated devices in this process: nox -s efa"
)

SPECS = (
    Spec(
        backend="libfabric",
        options={"provider": "efa", "rails": DEVICES},
        name=f"efa-direct-{DEVICES}",
        rails=DEVICES,
    ),
)

test_contract = contract(*SPECS, loops=("asyncio", "trio"), schedules=20, seeds=(1, 2, 3))
