"""libfabric's efa provider on emulated devices, in child processes that load the emulator."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

HERE = pathlib.Path(__file__).parent
MIB = 1 << 20
pytestmark = pytest.mark.timeout(300)  # it compiles, on whatever machine this is


def load_emulator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulator", HERE.parent / "efa_emulator" / "emulator.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["emulator"] = module  # where a dataclass looks its annotations up
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> object:
    emulator = load_emulator()
    if emulator.find_provider() is None or shutil.which("g++") is None:
        pytest.skip("needs the mpich wheel, which carries the efa provider, and g++")
    return emulator.build(tmp_path_factory.mktemp("efa"))


@pytest.fixture
def emulated(built) -> object:
    built.log.unlink(missing_ok=True)
    return built


def attempt(emulated, *command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | emulated.environment(**settings)
    command = (sys.executable, *command)
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=200, check=False)


def run(emulated, *command: str, **settings: object) -> str:
    done = attempt(emulated, *command, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def move(
    emulated, nbytes: int, options: dict[str, object], kind: str = "host", **settings: object
) -> dict[str, object]:
    return json.loads(run(emulated, str(HERE / "mover.py"), str(nbytes), json.dumps(options), kind, **settings))


def test_the_provider_lists_its_fabrics(emulated) -> None:
    said = [json.loads(line) for line in run(emulated, str(HERE / "listing.py"), devices=4).splitlines()]
    for number in range(4):
        for fabric in ("efa-direct", "efa"):
            assert ["efa", fabric, f"emulated{number}-rdm", 200] in said


@pytest.mark.parametrize("rails", [1, 4])
def test_packets_overtake_each_other_and_all_arrive(emulated, rails: int) -> None:
    assert "chunk" in move(emulated, 4 * MIB, {"rails": rails}, devices=rails)
    traffic = emulated.traffic()
    assert traffic.packets > 6 * 4 * MIB // 8192
    assert traffic.share > 0.3
    assert traffic.within > 0


@pytest.mark.parametrize("fabric", ["efa-direct", "efa"])
def test_device_memory_is_registered_by_its_dmabuf(emulated, fabric: str) -> None:
    depth = {"send_depth": 256, "receive_depth": 512} if fabric == "efa" else {}
    said = move(emulated, 4 * MIB, {"fabric": fabric, "rails": 2}, "dmabuf", devices=2, **depth)
    assert len(said["rails"]) == 2


def test_cuda_memory_needs_a_libfabric_with_hmem(emulated) -> None:
    said = move(emulated, MIB, {}, "cuda")
    assert "no FI_HMEM" in str(said["unavailable"])


def test_devices_without_rdma_write_are_refused(emulated) -> None:
    for generation in ("read", "none"):
        said = move(emulated, MIB, {}, generation=generation)
        assert "the device writes no remote memory itself" in str(said["unavailable"])


def test_devices_near_the_numa_node_are_chosen(emulated) -> None:
    said = move(emulated, MIB, {"near": "numa1"}, devices=4)
    assert said["rails"] == ["emulated2-rdm", "emulated3-rdm"]
    told = emulated.root / "topology.json"
    told.write_text(json.dumps({"gpu": {"devices": ["emulated3", "emulated0"]}}))
    said = move(emulated, MIB, {"near": "gpu", "topology": str(told)}, devices=4)
    assert said["rails"] == ["emulated3-rdm", "emulated0-rdm"]


def test_the_efa_fabric_takes_its_settings(emulated) -> None:
    options = {"fabric": "efa", "rnr_retry": 7, "huge_pages": False}
    said = move(emulated, MIB, options, send_depth=256, receive_depth=512)
    assert said["rails"] == ["emulated0-rdm"]


def test_a_full_queue_and_few_receives_do_not_stop_transfers(emulated) -> None:
    assert "chunk" in move(emulated, 4 * MIB, {}, eagain=0.3, send_depth=64)


def test_a_striped_write_counts_once_under_faults(emulated) -> None:
    count = 10_000 if "EFA_EMULATOR_MEASURE" in os.environ else 300
    faults = {"eagain": 0.2, "late": 0.3, "failed_completions": 0.01}
    said = json.loads(run(emulated, str(HERE / "stripes.py"), str(count), "132000", "8", devices=4, **faults))
    assert said["exact"] == count
    assert said["failed"] > 0
    assert said["pieces"] > 4 * count


def test_striped_writes_of_64_mib_count_once_under_faults(emulated) -> None:
    count = 200 if "EFA_EMULATOR_MEASURE" in os.environ else 12
    faults = {"eagain": 0.2, "late": 0.3, "failed_completions": 0.03}
    said = json.loads(run(emulated, str(HERE / "stripes.py"), str(count), str(64 * MIB), "4", devices=4, **faults))
    assert said["exact"] == count
    assert said["pieces"] > 4 * count


def test_peers_take_turns_at_a_nic(emulated) -> None:
    run(emulated, str(HERE / "turns.py"))
    turns = [entry["turns"] for entry in emulated.entries() if entry["messages"] > 4096]
    assert len(turns) == 3
    # 32 at a time are 128 turns per round, once all three are under way; all at once is one.
    assert max(turns) > 100


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_connecting_without_any_delivery_ends_with_an_error(emulated, loop: str) -> None:
    links = emulated.root / "links"
    links.write_text("0")
    said = json.loads(run(emulated, str(HERE / "links.py"), "greeting", loop, str(links), links=links, timeout_ms=200))
    assert "has not answered" in said["said"]
    assert 1 < said["seconds"] < 10


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_write_over_a_cut_link_ends_with_an_error(emulated, loop: str) -> None:
    links = emulated.root / "links"
    links.write_text("11")
    settings = {"devices": 2, "links": links, "timeout_ms": 500, "bytes_per_second": 60_000_000}
    said = json.loads(run(emulated, str(HERE / "links.py"), "rail", loop, str(links), **settings))
    assert said["said"]
    assert said["value"] == 1  # nothing is counted of what failed
    assert said["seconds"] < 10


def test_selected_conformance_checks_pass(emulated) -> None:
    suite = [str(HERE / "test_efa_conformance.py"), "-k", "asyncio and (pages_ or counters_ or regions_)"]
    said = run(emulated, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60", *suite, devices=2)
    assert "passed" in said
    assert emulated.traffic().share > 0.3


def fork(emulated, scene: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return attempt(emulated, "-W", "ignore::DeprecationWarning", str(HERE / "forks.py"), scene, **settings)


def test_a_forked_child_of_a_process_that_used_the_devices_is_refused(emulated) -> None:
    said = json.loads(fork(emulated, "after").stdout)
    assert said["child"].startswith("BackendUnavailableError: ")
    assert "this process was forked from one that had used libfabric" in said["child"]
    assert "set_start_method('spawn')" in said["child"]
    assert (said["parent"], said["again"]) == ("written", "written")


def test_a_forked_child_may_be_the_first_to_use_the_devices(emulated) -> None:
    assert json.loads(fork(emulated, "first").stdout) == {"child": "written", "parent": "written"}


def test_a_fork_during_writes_changes_no_byte(emulated) -> None:
    well = {"parent": "written", "child": "well"}
    assert json.loads(fork(emulated, "amid").stdout) == well
    # Where the kernel does not copy registered pages, the provider ends the process, unless it was told.
    ended = fork(emulated, "amid", copies_on_fork=0)
    assert ended.returncode == -signal.SIGABRT
    assert "FI_EFA_FORK_SAFE=1" in ended.stderr
    assert json.loads(fork(emulated, "safe", copies_on_fork=0).stdout) == well


def test_settings_that_come_after_the_provider_is_loaded_are_refused(emulated) -> None:
    said = json.loads(fork(emulated, "late").stdout)
    assert (said["first"], said["same"]) == ("written", "written")
    for name, variable in (("other", "FI_EFA_USE_HUGE_PAGE=1"), ("fork", "FI_EFA_FORK_SAFE=1")):
        assert said[name].startswith("UsageError: ")
        assert f"comes too late, libfabric is in use: export {variable}" in said[name]
    assert "fork_safe is perhaps" in said["neither"]
    assert "huge_pages and fork_safe exclude each other" in said["both"]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_option_decides_on_huge_pages(emulated, monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.setenv("FI_LOG_LEVEL", "info")
    monkeypatch.setenv("FI_LOG_PROV", "efa")
    options = json.dumps({"huge_pages": wanted})
    done = attempt(emulated, str(HERE / "mover.py"), str(MIB), options, "host")
    assert f"read bool var use_huge_page={int(wanted)}" in done.stderr  # by the provider


@pytest.mark.skipif("EFA_EMULATOR_MEASURE" not in os.environ, reason="needs a quiet machine: nox -s efa")
def test_four_nics_carry_four_times_as_much(emulated) -> None:
    limit = {"bytes_per_second": 8_000_000}  # so little that the CPU is no limit, on a small machine too
    one = move(emulated, 32 * MIB, {"rails": 1}, devices=1, **limit)
    four = move(emulated, 32 * MIB, {"rails": 4}, devices=4, **limit)
    for how in ("chunk", "pages"):
        assert float(str(four[how])) > 3.8 * float(str(one[how])), (one, four)
