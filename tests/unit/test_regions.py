"""Cuts are checked, leases are counted, and what is closed stays closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.driver.records import Access
from aio_transfer.errors import ClosedError, UsageError
from aio_transfer.regions.lease import LeaseCounter, LeaseState
from aio_transfer.regions.region import Region, RemoteRegion, RemoteSlice, Slice

if TYPE_CHECKING:
    from collections.abc import Callable

# -- leases -----------------------------------------------------------------------------------------------------------


def test_leases_are_counted_and_waiters_called_once_in_order() -> None:
    thing = LeaseCounter("thing")
    called: list[int] = []
    thing.acquire()
    thing.acquire()
    thing.when_free(lambda: called.append(1))
    thing.when_free(lambda: called.append(2))
    thing.release()
    assert (len(thing), called) == (1, [])
    thing.release()
    assert (len(thing), called) == (0, [1, 2])
    thing.acquire()
    thing.release()
    assert called == [1, 2]


def test_free_things_call_back_at_once() -> None:
    called: list[int] = []
    LeaseCounter("thing").when_free(lambda: called.append(1))
    assert called == [1]


def test_states_go_one_way() -> None:
    thing = LeaseCounter("thing 7")
    thing.acquire()
    assert thing.begin_close()
    assert not thing.begin_close()
    assert thing.state.value == "closing"
    with pytest.raises(ClosedError, match="thing 7 is closed"):
        thing.acquire()
    with pytest.raises(RuntimeError, match="1 leases out"):
        thing.finish_close()
    thing.release()
    thing.finish_close()
    thing.finish_close()
    assert not thing.begin_close()
    assert thing.state.value == "closed"
    with pytest.raises(ClosedError):
        thing.require_open()


def test_too_many_releases_are_a_defect() -> None:
    with pytest.raises(RuntimeError, match="more leases were released"):
        LeaseCounter("thing").release()


@given(st.lists(st.sampled_from(["lease", "release", "begin", "when"])))
def test_callbacks_come_exactly_when_free(steps: list[str]) -> None:
    thing, expected, asked, called = LeaseCounter("thing"), 0, 0, []
    for step in steps:
        if step == "lease" and thing.state is LeaseState.OPEN:
            thing.acquire()
            expected += 1
        elif step == "release" and expected:
            thing.release()
            expected -= 1
        elif step == "begin":
            thing.begin_close()
        elif step == "when":
            asked += 1
            thing.when_free(lambda: called.append(len(thing)))
        assert len(thing) == expected
        if not expected:
            assert called == [0] * asked


# -- slices -----------------------------------------------------------------------------------------------------------


@given(
    nbytes=st.integers(1, 40),
    start=st.none() | st.integers(-45, 45),
    stop=st.none() | st.integers(-45, 45),
)
def test_cuts_are_pythons_or_refused(
    make_remote: Callable[..., RemoteRegion], nbytes: int, start: int | None, stop: int | None
) -> None:
    region = make_remote(nbytes)
    within = all(bound is None or -nbytes <= bound <= nbytes for bound in (start, stop))
    first, last, _ = slice(start, stop).indices(nbytes)
    if within and first <= last:
        part = region[start:stop]
        assert (part.offset, part.nbytes) == (first, last - first)
        assert len(part) == last - first
    else:
        with pytest.raises(UsageError, match="not within"):
            _ = region[start:stop]


@given(st.data())
def test_cuts_of_cuts_are_cuts(make_remote: Callable[..., RemoteRegion], data: st.DataObject) -> None:
    reference = range(1000)
    part: RemoteRegion | RemoteSlice = make_remote(1000)
    for _ in range(4):
        start = data.draw(st.integers(0, len(reference)))
        stop = data.draw(st.integers(start, len(reference)))
        part, reference = part[start:stop], reference[start:stop]
        assert part.nbytes == len(reference)
        if reference:
            assert part.offset == reference[0]


@pytest.mark.parametrize("key", [slice(0, 4, 2), slice(None, None, -1), 5, (slice(0, 1), 0), "ab", slice(0, 1.5)])
def test_other_indices_are_refused(make_region: Callable[..., Region], key: Any) -> None:
    with pytest.raises(UsageError):
        _ = make_region(64)[key]


def test_numpy_integers_and_step_one_cut(make_region: Callable[..., Region]) -> None:
    region = make_region(64)
    assert region[np.int64(3) : np.uint8(9) : 1].nbytes == 6
    with pytest.raises(UsageError, match=r"\[0:65\] is not within the 64 B"):
        _ = region[0:65]
    with pytest.raises(UsageError, match=r"\[0:5\] is not within the 4 B of .* from 10"):
        _ = region[10:14][0:5]


def test_local_slices_show_their_bytes(make_region: Callable[..., Region]) -> None:
    region = make_region(bytearray(b"0123456789"))
    part = region[2:-2]
    assert isinstance(part, Slice)
    assert part.array.tobytes() == b"234567"
    assert part[1:3].array.tobytes() == b"34"
    assert region.array.nbytes == len(region) == 10


# -- regions ----------------------------------------------------------------------------------------------------------


def test_descriptor_becomes_the_remote_region(make_region: Callable[..., Region]) -> None:
    class Counter:
        id = 77

    region = make_region(8192, Access.REMOTE_READ)
    for counter in (77, Counter()):
        remote = RemoteRegion.from_bytes(bytes(region.descriptor(counter=counter)))
        assert (remote.nbytes, remote.access, remote.readable, remote.writable) == (
            8192,
            Access.REMOTE_READ,
            True,
            False,
        )
        assert remote.counter is not None
        assert (remote.counter.id, remote.counter.peer) == (77, remote.peer)
        assert RemoteRegion.from_bytes(bytes(remote)).key == remote.key
        assert remote.peer.label in repr(remote)
    assert RemoteRegion.from_bytes(bytes(region.descriptor())).counter is None


def test_remote_write_into_read_only_memory_is_refused(make_region: Callable[..., Region]) -> None:
    with pytest.raises(UsageError, match="bytes is read-only"):
        make_region(b"constant", Access.REMOTE_WRITE)
    assert make_region(b"constant", Access.REMOTE_READ).readonly


def test_closing_region_gives_nothing_out(make_region: Callable[..., Region]) -> None:
    region = make_region(64)
    region._lease.begin_close()
    for use in (
        lambda: region[0:1],
        lambda: region.pages([0], 1),
        region.descriptor,
        region._lease.acquire,
    ):
        with pytest.raises(ClosedError, match="region 0x"):
            use()


def test_aclose_is_the_owners(make_region: Callable[..., Region]) -> None:
    region = make_region(64)
    with pytest.raises(StopIteration):  # the fake never suspends, so no event loop is needed
        region.aclose().send(None)
    assert region._lease.state is LeaseState.CLOSED


def test_remote_keys_tell_regions_apart(make_remote: Callable[..., RemoteRegion]) -> None:
    assert len({make_remote().key for _ in range(10)}) == 10
