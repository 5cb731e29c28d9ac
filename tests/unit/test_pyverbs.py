"""The pyverbs backend where pyverbs or a device is missing: named, explained, and never opened automatically."""

from __future__ import annotations

import importlib.util
import logging
import sys

import pytest

from aio_transfer import BackendUnavailableError, UsageError
from aio_transfer.driver.backend_registry import automatic, load, names, open_driver


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no pyverbs, whatever is installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "pyverbs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyverbs", None)
    for name in [name for name in sys.modules if name.startswith("aio_transfer.backends.pyverbs.")]:
        monkeypatch.delitem(sys.modules, name)


def test_it_is_named_and_never_chosen() -> None:
    assert "pyverbs" in names()
    assert load("pyverbs") not in automatic()


@pytest.mark.usefixtures("without")
def test_without_pyverbs() -> None:
    with pytest.raises(BackendUnavailableError, match="cannot be imported") as caught:
        open_driver("pyverbs", {})
    assert "python3-pyverbs" in caught.value.hint


@pytest.mark.skipif(importlib.util.find_spec("pyverbs") is None, reason="pyverbs is not installed")
@pytest.mark.parametrize(
    "options", [{"device": "mlx5_99"}, {"address": "192.0.2.77"}, {"address": "nonsense"}], ids=str
)
def test_without_such_a_device(options: dict[str, str]) -> None:
    handlers = list(logging.root.handlers)
    with pytest.raises(BackendUnavailableError) as caught:
        open_driver("pyverbs", options)
    assert "rdma link add" in caught.value.hint
    assert logging.root.handlers == handlers, "importing pyverbs configures logging, and that is undone"


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no option 'rails': there are device, address"):
        load("pyverbs").make_driver({"rails": 2})
