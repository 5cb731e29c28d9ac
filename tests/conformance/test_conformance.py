"""The kit's checks, one test each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aio_transfer.testing import Check, run_check, select

if TYPE_CHECKING:
    from aio_transfer.testing import Spec

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", select(), ids=lambda check: f"{check.topic}-{check.name}")
async def test_contract(check: Check, spec: Spec) -> None:
    """The backend keeps the promise that the check makes."""
    missing = check.missing(spec)
    if missing:
        pytest.skip(f"{spec} has no {missing}")
    await run_check(check, spec)
