"""Conformance of libfabric's efa provider on emulated devices, as many as there are.

``EFA_FABRIC=efa`` selects the provider's fabric of that name instead of efa-direct.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from aio_transfer.testing import Spec
from aio_transfer.testing.plugin import contract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_transfer import TransferEngine

DEVICES = int(os.environ.get("EFA_EMULATOR_DEVICES", "1"))
FABRIC = os.environ.get("EFA_FABRIC", "efa-direct")

pytestmark = pytest.mark.skipif(
    "EFA_EMULATOR_LOG" not in os.environ, reason="no emulated devices in this process: nox -s efa"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uneven(Spec):
    """Engines that have other counts of NICs, in turn; the first of every check has ``rails``.

    :param others: how many every second one has
    """

    others: int = 1
    turns: Iterator[int] = field(default_factory=lambda: itertools.cycle((1,)))

    def seeded(self, seed: int) -> Uneven:
        """Begin anew."""
        return replace(self, seed=seed, turns=itertools.cycle((self.rails, self.others)))

    def engine(self, **overrides: Any) -> TransferEngine:
        """Make the next one."""
        one = replace(self, options={**self.options, "rails": next(self.turns)})
        return Spec.engine(one, **overrides)


def spec(rails: int) -> Spec:
    return Spec(
        backend="libfabric",
        options={"provider": "efa", "fabric": FABRIC, "rails": rails},
        name=f"{FABRIC}-{rails}",
        rails=rails,
    )


def uneven(rails: int, others: int) -> Uneven:
    return Uneven(
        backend="libfabric",
        options={"provider": "efa", "fabric": FABRIC},
        name=f"{FABRIC}-{rails}-to-{others}",
        rails=rails,
        others=others,
    )


UNEVEN = (uneven(4, 2), uneven(3, 1), uneven(1, 3)) if DEVICES == 4 and FABRIC == "efa-direct" else ()
SPECS = (spec(DEVICES), *UNEVEN)

test_contract = contract(*SPECS, loops=("asyncio", "trio"), schedules=20, seeds=(1, 2, 3))
