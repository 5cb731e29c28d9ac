"""Options of backends: every table checks what it is given, before a device is opened."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from aio_transfer import UsageError
from aio_transfer.driver import Option, OptionTable
from aio_transfer.driver.backend_registry import load, names
from aio_transfer.driver.options import as_text

BUILT_IN = ("libfabric", "pyverbs", "shm", "sim", "tcp", "verbs")
WRONG: list[tuple[str, dict[str, object], str]] = [
    ("shm", {"progres": "spin"}, "shm: there is no option 'progres': there are progress, spin_us, cpus; did you mean"),
    ("shm", {"progress": "spni"}, "shm: option progress is spni: allowed are adaptive, spin; did you mean 'spin'?"),
    ("shm", {"progress": 1}, "shm: option progress is 1: allowed are strings, adaptive, spin"),
    ("shm", {"progress": True}, "shm: option progress is True: allowed are strings, adaptive, spin"),
    ("shm", {"spin_us": -1}, "shm: option spin_us is -1: allowed are 0 … 60000000 µs"),
    ("shm", {"spin_us": "soon"}, "shm: option spin_us is soon: allowed are integers, 0 … 60000000 µs"),
    ("shm", {"spin_us": 1.5}, "shm: option spin_us is 1.5: allowed are integers"),
    ("shm", {"spin_us": True}, "shm: option spin_us is True: allowed are integers"),
    ("shm", {"cpus": [-1]}, "shm: option cpus is [-1]: allowed are 0 … 1023"),
    ("shm", {"address": "127.0.0.1"}, "shm: there is no option 'address'"),
    ("tcp", {"connect_s": math.nan}, "tcp: option connect_s is nan: allowed are numbers"),
    ("tcp", {"post_deadline_s": "soon"}, "tcp: option post_deadline_s is soon: allowed are numbers"),
    ("tcp", {"progress": "spni"}, "tcp: option progress is spni: allowed are adaptive, spin"),
    ("tcp", {"address": []}, "tcp: option address is []: allowed are lists of names"),
    ("libfabric", {"progress": "spni"}, "libfabric: option progress is spni: allowed are adaptive, spin"),
    ("libfabric", {"providr": "tcp"}, "libfabric: there is no option 'providr': .*; did you mean 'provider'"),
    ("libfabric", {"unproven": "perhaps"}, "libfabric: option unproven is perhaps: allowed are True, False"),
    ("verbs", {"service_level": -1}, "verbs: option service_level is -1: allowed are 0 … 15"),
    ("verbs", {"devices": 5}, "verbs: option devices is 5: allowed are lists of names"),
    ("sim", {"seed": "dice"}, "sim: option seed is dice: allowed are integers"),
    ("pyverbs", {"rails": 2}, "pyverbs: there is no option 'rails': there are device, address"),
    ("shm", {"cpus": "0,x"}, "shm: option cpus is 0,x: allowed are lists of integers, 0 … 1023"),
    ("shm", {"cpus": [0, 1024]}, "shm: option cpus is [0, 1024]: allowed are 0 … 1023"),
    ("shm", {"cpus": []}, "shm: option cpus is []: allowed are lists of integers"),
    ("shm", {"cpus": 3}, "shm: option cpus is 3: allowed are lists of integers"),
    ("shm", {"rails": 2}, "shm: there is no option 'rails'"),
    ("tcp", {"rails": 99}, "tcp: option rails is 99: allowed are 1 … 8"),
    ("tcp", {"rails": 0}, "tcp: option rails is 0: allowed are 1 … 8"),
    ("tcp", {"rails": 1.5}, "tcp: option rails is 1.5: allowed are integers, 1 … 8"),
    ("tcp", {"rails": True}, "tcp: option rails is True: allowed are integers, 1 … 8"),
    ("tcp", {"rails": "many"}, "tcp: option rails is many: allowed are integers, 1 … 8"),
    ("tcp", {"connect_s": 0}, "tcp: option connect_s is 0: allowed are 0.01 … 1000000 s"),
    ("tcp", {"post_deadline_s": math.inf}, "tcp: option post_deadline_s is inf: allowed are numbers, 0.01 … 1000000 s"),
    ("tcp", {"post_deadline_s": "nan"}, "tcp: option post_deadline_s is nan: allowed are numbers"),
    ("tcp", {"address": "127.0.0.1,,127.0.0.2"}, "tcp: option address is 127.0.0.1,,127.0.0.2: allowed are lists of"),
    ("tcp", {"address": b"127.0.0.1"}, "tcp: option address is b'127.0.0.1': allowed are lists of names"),
    ("tcp", {"adress": "127.0.0.1"}, "tcp: there is no option 'adress': .*; did you mean 'address'"),
    ("tcp", {"provider": "tcp"}, "tcp: there is no option 'provider'"),
    ("verbs", {"rails": 65}, "verbs: option rails is 65: allowed are 1 … 64"),
    ("verbs", {"depth": 1}, "verbs: option depth is 1: allowed are 2 … 32768"),
    ("verbs", {"inline_nbytes": 4097}, "verbs: option inline_nbytes is 4097: allowed are 0 … 4096 bytes"),
    ("verbs", {"relaxed_ordering": "maybe"}, "verbs: option relaxed_ordering is maybe: allowed are True, False"),
    ("verbs", {"relaxed_ordering": 2}, "verbs: option relaxed_ordering is 2: allowed are True, False"),
    ("verbs", {"service_level": 16}, "verbs: option service_level is 16: allowed are 0 … 15"),
    ("verbs", {"traffic_class": 256}, "verbs: option traffic_class is 256: allowed are 0 … 255"),
    ("verbs", {"timeout": 32}, "verbs: option timeout is 32: allowed are 0 … 31"),
    ("verbs", {"retries": 8}, "verbs: option retries is 8: allowed are 0 … 7"),
    ("verbs", {"devices": ["mlx5_0", ""]}, "verbs: option devices is ['mlx5_0', '']: allowed are lists of names"),
    ("verbs", {"devices": ["mlx5_0,mlx5_1"]}, "verbs: option devices is ['mlx5_0,mlx5_1']: allowed are lists of names"),
    ("verbs", {"device": "mlx5_0"}, "verbs: there is no option 'device': .*; did you mean 'devices'"),
    (
        "libfabric",
        {"endpoints": "peers"},
        "libfabric: option endpoints is peers: allowed are peer, shared; did you mean",
    ),
    ("libfabric", {"rnr_retry": 8}, "libfabric: option rnr_retry is 8: allowed are 0 … 7"),
    ("libfabric", {"fork_safe": "perhaps"}, "libfabric: option fork_safe is perhaps: allowed are True, False"),
    ("libfabric", {"rails": 0}, "libfabric: option rails is 0: allowed are 1 … 1000000000"),
    ("libfabric", {"provider": 7}, "libfabric: option provider is 7: allowed are strings"),
    ("libfabric", {"verdict_s": -0.5}, "libfabric: option verdict_s is -0.5: allowed are 0 … 1000000000 s"),
    ("sim", {"nics": 9}, "sim: option nics is 9: allowed are 1 … 8"),
    ("sim", {"reorder": 1.01}, "sim: option reorder is 1.01: allowed are 0 … 1"),
    ("sim", {"seed": 2**64}, "sim: option seed is 18446744073709551616: allowed are 0 … 18446744073709551615"),
    ("sim", {"bug": "none"}, "sim: option bug is none: allowed are count_before_payload, error_before_stop"),
    ("sim", {"cpus": "0"}, "sim: there is no option 'cpus'"),
    (
        "pyverbs",
        {"devices": "mlx5_0"},
        "pyverbs: there is no option 'devices': there are device, address; did you mean",
    ),
    ("pyverbs", {"device": ["mlx5_0"]}, "pyverbs: option device is ['mlx5_0']: allowed are strings"),
]
RIGHT: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("shm", {}, {}),
    ("shm", {"progress": "spin", "spin_us": "50", "cpus": "0,3"}, {"progress": "spin", "spin_us": 50, "cpus": (0, 3)}),
    ("shm", {"cpus": range(2)}, {"cpus": (0, 1)}),
    ("shm", {"spin_us": np.int64(7)}, {"spin_us": 7}),
    ("shm", {"progress": None, "spin_us": ""}, {}),
    ("tcp", {"address": "127.0.0.1,::1", "rails": "2"}, {"address": ("127.0.0.1", "::1"), "rails": 2}),
    ("tcp", {"connect_s": 1, "post_deadline_s": "0.5"}, {"connect_s": 1.0, "post_deadline_s": 0.5}),
    ("tcp", {"connect_s": np.float32(2)}, {"connect_s": 2.0}),
    ("verbs", {"devices": ["mlx5_0", "mlx5_1:2"]}, {"devices": ("mlx5_0", "mlx5_1:2")}),
    ("verbs", {"relaxed_ordering": "False"}, {"relaxed_ordering": False}),
    ("libfabric", {"huge_pages": 0, "fork_safe": "1"}, {"huge_pages": False, "fork_safe": True}),
    ("libfabric", {"library": pathlib.Path("/opt/lib/libfabric.so.1")}, {"library": "/opt/lib/libfabric.so.1"}),
    ("libfabric", {"provider": "verbs;ofi_rxm"}, {"provider": "verbs;ofi_rxm"}),
    ("sim", {"seed": 2**64 - 1, "mtu": 512}, {"seed": 2**64 - 1, "mtu": 512}),
    ("sim", {"fabric": math}, {"fabric": math}),
    ("pyverbs", {"address": "10.0.0.1"}, {"address": "10.0.0.1"}),
]


@pytest.mark.parametrize(("backend", "given", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_options_are_refused(backend: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(backend).options.check(backend, given)
    for part in message.split(".*"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("backend", "given", "checked"), RIGHT, ids=lambda value: str(value)[:40])
def test_right_options_get_their_types(backend: str, given: dict[str, object], checked: dict[str, object]) -> None:
    found = load(backend).options.check(backend, given)
    assert found == checked
    assert [type(value) for value in found.values()] == [type(value) for value in checked.values()]


@pytest.mark.parametrize("given", [None, "progress=spin", 5, ["progress"]], ids=str)
def test_options_are_a_mapping(given: Any) -> None:
    with pytest.raises(UsageError, match="shm: options are a mapping of names to values"):
        load("shm").options.check("shm", given)


def test_a_backend_without_options() -> None:
    with pytest.raises(UsageError, match="mine: there is no option 'x': it has none"):
        OptionTable().check("mine", {"x": 1})
    assert OptionTable().check("mine", {}) == {}


@pytest.mark.parametrize(
    ("host", "given", "address"),
    [
        ("10.0.0.1", {}, ("10.0.0.1",)),
        ("::1", {}, ("::1",)),
        ("10.0.0.1", {"address": "10.0.0.2"}, ("10.0.0.2",)),
        ("10.0.0.1", {"address": ""}, ("10.0.0.1",)),
        ("0.0.0.0", {}, None),  # noqa: S104 - a wildcard that is not used
        ("::", {}, None),
        ("localhost", {}, None),
        ("", {}, None),
    ],
)
def test_the_engine_s_host_is_a_default(host: str, given: dict[str, object], address: tuple[str, ...] | None) -> None:
    assert load("tcp").options.check("tcp", given, host=host).get("address") == address
    assert "address" not in load("libfabric").options.check("libfabric", {}, host=host)


@pytest.mark.parametrize("backend", BUILT_IN)
def test_every_option_is_documented(backend: str) -> None:
    assert backend in names()
    rows = load(backend).options.as_rows()
    assert [row.name for row in rows] == list(load(backend).options)
    for row in rows:
        assert all(isinstance(field, str) for field in row)
        assert row.meaning.endswith((".", ")"))
    assert load(backend).summary.endswith(".")


@pytest.mark.parametrize("backend", BUILT_IN)
def test_defaults_are_allowed(backend: str) -> None:
    table = load(backend).options
    given = {name: option.default for name, option in table.items() if option.default not in (None, ())}
    checked = table.check(backend, given)
    assert {name: checked[name] for name in checked if given[name] != ""} == {
        name: value for name, value in given.items() if value != ""
    }


def test_a_row_is_text() -> None:
    option = Option("wait_s", float, 30.0, "How long it waits.", unit="s", minimum=0.5)
    assert option.as_row() == ("wait_s", "number", "0.5 or more", "30", "s", "How long it waits.")
    with pytest.raises(UsageError, match=r"mine: option wait_s is 0: allowed are 0\.5 or more s"):
        option.parse("mine", 0)


def test_native_text() -> None:
    assert [as_text(value) for value in (True, 7, 0.25, 30.0, ("a", "b"), "x")] == [
        "True",
        "7",
        "0.25",
        "30",
        "a,b",
        "x",
    ]


def test_a_table_is_immutable_and_its_names_are_unique() -> None:
    one = Option("one", int, 1, "The one.")
    table = OptionTable(one)
    assert (list(table), table["one"], len(table)) == (["one"], one, 1)
    assert not hasattr(table, "__setitem__")
    with pytest.raises(ValueError, match="two options have one name"):
        OptionTable(one, one)
    with pytest.raises(TypeError, match="of kind"):
        Option("bad", dict, None, "No such kind.")
