"""NumPy's threads can be set, and are set back."""

from __future__ import annotations

import pytest

from aio_transfer.demo import blas
from aio_transfer.demo.blas import blas_threads


def test_sets_and_restores() -> None:
    found = blas._find_openblas()
    if found is None:
        pytest.skip("NumPy runs on another library than OpenBLAS")
    read, _ = found
    before = read()
    with blas_threads(1) as found_library:
        assert found_library
        assert read() == 1
        with pytest.raises(ZeroDivisionError), blas_threads(2):
            raise ZeroDivisionError
        assert read() == 1
    assert read() == before


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "SYMBOLS", ())
    with blas_threads(1) as found_library:
        assert not found_library
