"""The native core refuses malformed options itself, whatever was checked before."""

from __future__ import annotations

import pytest

from aio_transfer.backends.native import NativeDriver
from aio_transfer.errors import UsageError


@pytest.mark.parametrize(
    ("option", "value"),
    [("cpus", "0,x"), ("cpus", "-1"), ("cpus", "0,99999"), ("spin_us", "soon"), ("spin_us", "1.5"), ("spin_us", "-2")],
)
def test_options_that_are_no_numbers_are_refused(option: str, value: str) -> None:
    driver = NativeDriver("shm", {option: value})
    with pytest.raises(UsageError, match=option):
        driver.open()
    driver.close()


def test_cores_and_times_are_taken() -> None:
    driver = NativeDriver("shm", {"cpus": "0", "spin_us": 50})
    assert driver.open().backend == "shm"
    driver.close()
