"""Options of every backend are checked before anything is opened, and errors name option, value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from aio_transfer.driver.backend_registry import load, names, open_drivers
from aio_transfer.driver.options import Option, OptionTable, as_text
from aio_transfer.errors import UsageError

WRONG: list[tuple[str, dict[str, Any], str]] = [
    # backend, options, words of the error
    ("shm", {"progres": "spin"}, r"shm: there is no option 'progres'.*did you mean 'progress'"),
    ("shm", {"progress": "spni"}, r"option progress is spni: allowed are .*adaptive, spin.*did you mean 'spin'"),
    ("shm", {"progress": 1}, r"option progress is 1"),
    ("shm", {"spin_us": -1}, r"option spin_us is -1: allowed are"),
    ("shm", {"spin_us": "soon"}, r"option spin_us is soon"),
    ("shm", {"spin_us": 1.5}, r"option spin_us is 1\.5"),
    ("shm", {"spin_us": True}, r"option spin_us is True"),
    ("shm", {"cpus": "0,x"}, r"option cpus is 0,x"),
    ("shm", {"cpus": [-1]}, r"option cpus is \[-1\]"),
    ("shm", {"address": "127.0.0.1"}, r"there is no option 'address'"),
    ("tcp", {"rails": 99}, r"tcp: option rails is 99: allowed are .*1 … 8"),
    ("tcp", {"rails": 0}, r"1 … 8"),
    ("tcp", {"rails": 2.5}, r"option rails is 2\.5"),
    ("tcp", {"rails": "two"}, r"option rails is two"),
    ("tcp", {"rails": True}, r"option rails is True"),
    ("tcp", {"connect_s": 0}, r"option connect_s is 0: allowed are"),
    ("tcp", {"connect_s": float("nan")}, r"option connect_s is nan"),
    ("tcp", {"connect_s": float("inf")}, r"option connect_s is inf"),
    ("tcp", {"post_deadline_s": "soon"}, r"option post_deadline_s is soon"),
    ("tcp", {"progress": "spni"}, r"option progress is spni"),
    ("tcp", {"adress": "127.0.0.1"}, r"did you mean 'address'"),
    ("tcp", {"address": b"127.0.0.1"}, r"option address is b'127"),
    ("tcp", {"address": []}, r"option address is \[\]"),
    ("libfabric", {"progress": "spni"}, r"option progress is spni"),
    ("libfabric", {"providr": "tcp"}, r"did you mean 'provider'"),
    ("libfabric", {"unproven": "perhaps"}, r"option unproven is perhaps"),
    ("libfabric", {"rails": 0}, r"option rails is 0"),
    ("verbs", {"device": "mlx5_0"}, r"did you mean 'devices'"),
    ("verbs", {"traffic_class": 256}, r"option traffic_class is 256: allowed are .*255"),
    ("verbs", {"service_level": -1}, r"option service_level is -1"),
    ("verbs", {"devices": 5}, r"option devices is 5"),
    ("sim", {"nics": 9}, r"option nics is 9: allowed are .*1 … 8"),
    ("sim", {"seed": "dice"}, r"option seed is dice"),
    ("pyverbs", {"rails": 2}, r"there is no option 'rails'"),
]


@pytest.mark.parametrize(("backend", "options", "words"), WRONG, ids=str)
def test_wrong_options_are_refused_before_a_device_is_opened(backend: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(backend).options.check(backend, options)


def test_options_of_a_backend_that_is_not_opened_are_refused() -> None:
    with pytest.raises(UsageError, match="tcp"):
        open_drivers("shm", {"tcp": {"rails": 2}})


def test_options_of_no_backend_are_refused() -> None:
    with pytest.raises(UsageError, match="nope"):
        open_drivers("auto", {"nope": {}})


def test_an_unknown_backend_is_named_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"there is no backend 'nope'.*shm.*tcp"):
        load("nope")


@pytest.mark.parametrize("backend", names())
def test_every_option_is_described(backend: str) -> None:
    for row in load(backend).options.as_rows():
        assert row.name
        assert row.type
        assert row.meaning.endswith(".")


@pytest.mark.parametrize("backend", names())
def test_every_default_is_allowed(backend: str) -> None:
    for option in load(backend).options.values():
        if option.default not in (None, ()) and option.kind is not object:
            option.parse(backend, option.default)


def test_values_of_the_right_kind_are_converted() -> None:
    table = OptionTable(
        Option("count", int, 1, "A count.", minimum=1),
        Option("names", list[str], None, "Names."),
        Option("flag", bool, False, "A flag."),
    )
    given = {"count": "3", "names": ["a", "b"], "flag": "true"}
    assert table.check("mine", given) == {"count": 3, "names": ("a", "b"), "flag": True}
    assert as_text(("a", "b")) == "a,b"
    assert table.check("mine", {"count": None, "names": ""}) == {}


def test_an_address_defaults_to_the_engines_host() -> None:
    table = load("tcp").options
    assert table.check("tcp", {}, host="127.0.0.2")["address"] == ("127.0.0.2",)
    assert "address" not in table.check("tcp", {}, host="somewhere.invalid")
    assert table.check("tcp", {"address": "127.0.0.3"}, host="127.0.0.2")["address"] == ("127.0.0.3",)
