"""Event loop of the fabric's tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Return uvloop, the fastest: tests that depend on the event loop name theirs."""
    return ("asyncio", {"use_uvloop": True})
