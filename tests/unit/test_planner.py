"""Pieces tile the bytes, each chunk is counted once and not before it is whole, rails share the load."""

from __future__ import annotations

import array
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aio_transfer.driver.records import (
    ANY_REGION,
    MAX_COUNTER_ID,
    PIECE,
    RUN,
    Access,
    Op,
    PeerNumber,
    PieceFlag,
    RegionNumber,
)
from aio_transfer.errors import UsageError
from aio_transfer.transfers.planner import (
    Batch,
    Route,
    plan_notify,
    plan_pages,
    plan_read,
    plan_read_pages,
    plan_scatter,
    plan_write,
)
from aio_transfer.transfers.scatter_planner import ScatterPlanner

if TYPE_CHECKING:
    from aio_transfer.regions.region import Region, RemoteRegion

MIB = 1 << 20
COUNTER = 0xABCDEF


def route(rails: int = 1, largest: int = 1 << 30, stripe: int = 128 * 1024, peer: int = 4, remote: int = 9) -> Route:
    return Route(
        peer=PeerNumber(peer),
        remote_region=RegionNumber(remote),
        rails=rails,
        max_piece_nbytes=largest,
        stripe_nbytes=stripe,
    )


def unpack(plan: Batch) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return runs and pieces, with what holds for every plan checked."""
    runs, pieces = np.frombuffer(plan.runs, RUN), np.frombuffer(plan.pieces, PIECE)
    assert (runs["count"] > 0).all()
    assert (
        runs["first"].tolist() == np.concatenate([[0], np.cumsum(runs["count"])[:-1]]).tolist() if len(runs) else True
    )
    assert int(runs["count"].sum()) == len(pieces)
    assert int(pieces["nbytes"].sum()) == plan.nbytes
    return runs, pieces


def counts(pieces: np.ndarray[Any, Any], counter: int) -> int:
    assert (pieces["flags"] == PieceFlag.IMMEDIATE).all()
    assert (pieces["immediate"] & MAX_COUNTER_ID == counter).all()
    return int(((pieces["immediate"] >> 24) + 1).sum())


def payload(
    runs: np.ndarray[Any, Any], pieces: np.ndarray[Any, Any], counter: int | None, chunks: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the runs and pieces that move bytes, with it checked that each chunk is counted, and not too early."""
    if counter is None:
        assert not pieces["immediate"].any()
        assert not pieces["flags"].any()
        assert not runs["after"].any()
        return runs, pieces
    if not runs["after"].any():
        assert len(pieces) == chunks, "a chunk in several pieces is counted by none of them"
        assert counts(pieces, counter) == chunks
        return runs, pieces
    last = runs[-1]
    assert not runs["after"][:-1].any()
    assert last["after"] == len(runs) - 1, "it follows all of the others"
    assert (last["op"], last["local_region"]) == (Op.WRITE, ANY_REGION)
    assert last["first"] + last["count"] == len(pieces)
    assert counts(pieces[last["first"] :], counter) == chunks
    assert not pieces["nbytes"][last["first"] :].any()
    moving = pieces[: last["first"]]
    assert (moving["flags"] == PieceFlag.DELIVERED).all()
    assert not moving["immediate"].any()
    return runs[:-1], moving


def tiles(pieces: np.ndarray[Any, Any], local: int, remote: int, nbytes: int) -> None:
    """Assert that these pieces cover exactly these bytes, each once, in order."""
    ends = np.cumsum(pieces["nbytes"])
    begins = ends - pieces["nbytes"]
    assert int(ends[-1]) == nbytes
    assert (pieces["local_addr"] - np.uint64(local) == begins).all()
    assert (pieces["remote_offset"] - np.uint64(remote) == begins).all()


# -- one slice --------------------------------------------------------------------------------------------------------


def test_small_write_is_one_whole_piece(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]
) -> None:
    region, remote = make_region(), make_remote()
    plan = plan_write(region[100:200], remote[7:107], route(8), counter=COUNTER, cursor=11)
    assert isinstance(plan.runs, bytes)
    assert isinstance(plan.pieces, bytes)
    runs, pieces = unpack(plan)
    assert runs.tolist() == [(4, 3, Op.WRITE, region.number, 9, 0, 1, 0)]
    assert pieces.tolist() == [(region.address + 100, 7, 100, COUNTER, 1)]
    assert (plan.chunks, plan.nbytes) == (1, 100)


def test_uncounted_write_and_read_carry_no_immediate(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]
) -> None:
    part, far = make_region()[0:10], make_remote()[0:10]
    for plan, op in ((plan_write(part, far, route()), Op.WRITE), (plan_read(part, far, route()), Op.READ)):
        runs, pieces = unpack(plan)
        assert runs["op"].tolist() == [op]
        assert pieces[["immediate", "flags"]].tolist() == [(0, 0)]


@pytest.mark.parametrize("rails", [1, 4])
def test_write_without_bytes_counts_once(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion], rails: int
) -> None:
    _, pieces = unpack(plan_write(make_region()[5:5], make_remote()[9:9], route(rails), counter=0))
    assert pieces["nbytes"].tolist() == [0]
    assert counts(pieces, 0) == 1


def test_notify_names_no_memory() -> None:
    runs, pieces = unpack(plan_notify(route(2, remote=0), counter=5, cursor=3))
    assert runs.tolist() == [(4, 1, Op.WRITE, ANY_REGION, ANY_REGION, 0, 1, 0)]
    assert pieces.tolist() == [(0, 0, 0, 5, 1)]


@settings(max_examples=300, deadline=None)
@given(
    nbytes=st.integers(0, 300_000) | st.integers(0, 8 * MIB),
    rails=st.integers(1, 33),
    largest=st.sampled_from([1000, 4096, 5001, 65536, MIB, MIB + 1, 1 << 30, 2**64 - 1]),
    stripe=st.sampled_from([1, 4096, 128 * 1024]),
    cursor=st.integers(0, 100),
    counted=st.booleans(),
    data=st.data(),
)
def test_contiguous_plans(  # noqa: PLR0913, PLR0917
    make_region: Callable[..., Region],
    make_remote: Callable[..., RemoteRegion],
    nbytes: int,
    rails: int,
    largest: int,
    stripe: int,
    cursor: int,
    counted: bool,
    data: st.DataObject,
) -> None:
    region, remote = big_region(make_region), make_remote(9 * MIB)
    local_at, remote_at = data.draw(st.integers(0, MIB)), data.draw(st.integers(0, MIB))
    source, target = region[local_at : local_at + nbytes], remote[remote_at : remote_at + nbytes]
    way = route(rails, largest, stripe)
    counter = COUNTER if counted else None
    plan = plan_write(source, target, way, counter=counter, cursor=cursor)
    runs, pieces = payload(*unpack(plan), counter, 1)
    tiles(pieces, source.region.address + source.offset, target.offset, nbytes)
    assert (pieces["nbytes"] <= min(largest, 2**63)).all()
    assert len(pieces) == 1 or (pieces["nbytes"] > 0).all()
    assert (plan.chunks, plan.nbytes) == (1, nbytes)
    assert len(set(runs["rail"].tolist())) == len(runs) <= rails
    assert runs["rail"][0] == cursor % rails
    if nbytes > stripe and nbytes >= 4096 * rails and nbytes >= stripe // 4 * rails:
        assert len(runs) == rails
        loads = [int(pieces["nbytes"][run["first"] : run["first"] + run["count"]].sum()) for run in runs]
        # Rails have equally many pieces unless these would have no two grains; pieces differ by at most two grains.
        unit = way.grain_nbytes
        spread = int(pieces["nbytes"].max())
        slack = 2 * unit * int(runs["count"].max())
        balanced = len(pieces) % rails == 0
        assert max(loads) - min(loads) <= (slack if balanced else spread + slack)
        if nbytes >= 2 * unit * len(pieces):
            assert balanced


_big: list[Region] = []


def big_region(make_region: Callable[..., Region]) -> Region:
    if not _big:
        _big.append(make_region(9 * MIB))
    return _big[0]


@pytest.mark.parametrize("rails", [1, 2, 3, 8, 32])
def test_rails_share_a_large_write(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion], rails: int
) -> None:
    region, remote = big_region(make_region), make_remote(9 * MIB)
    plan = plan_write(region[0 : 8 * MIB], remote[0 : 8 * MIB], route(rails), counter=1, cursor=1)
    runs, pieces = payload(*unpack(plan), 1, 1)
    assert len(pieces) == rails
    assert runs["rail"].tolist() == [(1 + index) % rails for index in range(rails)]
    assert int(pieces["nbytes"].max() - pieces["nbytes"].min()) <= 4096
    assert (pieces["remote_offset"] % 4096 == 0).all()


def test_just_above_the_threshold_no_rail_gets_crumbs(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]
) -> None:
    region, remote = big_region(make_region), make_remote(9 * MIB)
    nbytes = 128 * 1024 + 1
    _, pieces = payload(*unpack(plan_write(region[0:nbytes], remote[0:nbytes], route(32), counter=1)), 1, 1)
    assert len(pieces) == 4


@pytest.mark.parametrize("count", [2, 256, 257, 2000])
@pytest.mark.parametrize("rails", [1, 3, 8])
def test_a_counted_chunk_has_as_many_pieces_as_it_needs(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion], rails: int, count: int
) -> None:
    region, remote = big_region(make_region), make_remote(9 * MIB)
    nbytes = count * 4096
    plan = plan_write(region[0:nbytes], remote[0:nbytes], route(rails, 4096), counter=3)
    _, pieces = payload(*unpack(plan), 3, 1)
    assert len(pieces) == count


@pytest.mark.parametrize("counter", [-1, MAX_COUNTER_ID + 1])
def test_counter_ids_have_24_bits(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion], counter: int
) -> None:
    region, remote = big_region(make_region), make_remote(9 * MIB)
    for nbytes in (10, MIB):
        with pytest.raises(UsageError, match="24 bits"):
            plan_write(region[0:nbytes], remote[0:nbytes], route(2), counter=counter)
    with pytest.raises(UsageError, match="24 bits"):
        plan_notify(route(), counter=counter)


def test_rights_and_lengths_are_checked(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]
) -> None:
    region, frozen = make_region(), make_region(bytes(100), Access.REMOTE_READ)
    both, readable, writable = (
        make_remote(),
        make_remote(100, Access.REMOTE_READ),
        make_remote(100, Access.REMOTE_WRITE),
    )
    with pytest.raises(UsageError, match="source is 10 B, target is 11 B"):
        plan_write(region[0:10], both[0:11], route())
    with pytest.raises(UsageError, match="source is 11 B, target is 10 B"):
        plan_read(region[0:10], both[0:11], route())
    with pytest.raises(UsageError, match="not granted REMOTE_WRITE"):
        plan_write(region[0:10], readable[0:10], route())
    with pytest.raises(UsageError, match="not granted REMOTE_READ"):
        plan_read(region[0:10], writable[0:10], route())
    with pytest.raises(UsageError, match=r"memory of region .* is read-only"):
        plan_read(frozen[0:10], both[0:10], route())
    plan_write(frozen[0:10], both[0:10], route())  # reading from it is all a write does


@pytest.mark.parametrize("wrong", [{"rails": 0}, {"largest": 0}, {"stripe": 0}])
def test_impossible_routes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        route(**wrong)


# -- pages ------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 40),
    page=st.sampled_from([0, 1, 16, 1000, 4096, 5000, 10_000, 70_000]),
    rails=st.integers(1, 9),
    largest=st.sampled_from([64, 1000, 4096, 4097, 1 << 30]),
    stripe=st.sampled_from([1, 8192, 128 * 1024]),
    cursor=st.integers(0, 20),
    counted=st.booleans(),
    write=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_paged_plans(  # noqa: PLR0913, PLR0917
    make_region: Callable[..., Region],
    make_remote: Callable[..., RemoteRegion],
    count: int,
    page: int,
    rails: int,
    largest: int,
    stripe: int,
    cursor: int,
    counted: bool,
    write: bool,
    seed: int,
) -> None:
    assume(write or not counted)
    region, remote = big_region(make_region), make_remote(9 * MIB)
    rng = np.random.default_rng(seed)
    local_ids, remote_ids = rng.integers(0, 60, count), rng.permutation(60)[:count]
    local = region.pages(local_ids, page, stride_nbytes=page + 24, offset_nbytes=40)
    far = remote.pages(remote_ids, page, stride_nbytes=page + 8, offset_nbytes=16)
    way = route(rails, largest, stripe)
    counter = COUNTER if counted else None
    op = Op.WRITE if write else Op.READ
    plan = (plan_pages if write else plan_read_pages)(local, far, way, counter, cursor)
    runs, pieces = payload(*unpack(plan), counter, count)
    assert (plan.chunks, plan.nbytes) == (count, count * page)
    assert (pieces["nbytes"] <= largest).all()
    per_page = len(pieces) // count
    assert per_page * count == len(pieces)
    for index in range(count):
        mine = pieces[index * per_page : (index + 1) * per_page]
        begin = region.address + 40 + int(local_ids[index]) * (page + 24)
        tiles(mine, begin, 16 + int(remote_ids[index]) * (page + 8), page)
    assert (runs["op"] == op).all()
    assert runs["rail"].tolist() == [(cursor + index) % rails for index in range(min(rails, len(pieces)))]
    assert int(runs["count"].max()) - int(runs["count"].min()) <= 1


def test_no_pages_no_runs(make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]) -> None:
    plan = plan_pages(make_region().pages([], 8), make_remote().pages([], 8), route(4), counter=1)
    assert plan == Batch(b"", b"", 0, 0)


def test_empty_pages_count_each(make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]) -> None:
    ids = range(10)
    _, pieces = unpack(plan_pages(make_region().pages(ids, 0), make_remote().pages(ids, 0), route(3), counter=2))
    assert counts(pieces, 2) == 10


def test_two_large_pages_use_eight_rails(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]
) -> None:
    region, remote = big_region(make_region), make_remote(9 * MIB)
    plan = plan_pages(region.pages([0, 3], MIB), remote.pages([1, 2], MIB), route(8), counter=2)
    runs, pieces = payload(*unpack(plan), 2, 2)
    assert len(runs) == len(pieces) == 8


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_many_pages_that_are_cut_are_counted_by_few_pieces(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion], count: int
) -> None:
    region, remote = big_region(make_region), make_remote(9 * MIB)
    plan = plan_pages(region.pages(range(count), 8192), remote.pages(range(count), 8192), route(3, 4096), counter=2)
    _, pieces = payload(*unpack(plan), 2, count)
    assert len(plan.pieces) - len(pieces) == -(-count // 256)


def test_pages_must_match(make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]) -> None:
    region, remote, readable = make_region(), make_remote(), make_remote(100, Access.REMOTE_READ)
    with pytest.raises(UsageError, match=r"2 pages of .*, but 1 of"):
        plan_pages(region.pages([0, 1], 8), remote.pages([0], 8), route())
    with pytest.raises(UsageError, match="source is 8 B, target is 16 B"):
        plan_pages(region.pages([0], 8), remote.pages([0], 16), route())
    with pytest.raises(UsageError, match="REMOTE_WRITE"):
        plan_pages(region.pages([0], 8), readable.pages([0], 8), route())
    with pytest.raises(UsageError, match="REMOTE_READ"):
        plan_read_pages(region.pages([0], 8), make_remote(9, Access.LOCAL).pages([0], 8), route())
    frozen = make_region(bytes(8), Access.LOCAL)
    with pytest.raises(UsageError, match="read-only"):
        plan_read_pages(frozen.pages([0], 8), remote.pages([0], 8), route())
    with pytest.raises(UsageError, match="raises no counter"):
        plan_read_pages(region.pages([0], 8), remote.pages([0], 8), route(), counter=1)
    with pytest.raises(UsageError, match="raises no counter"):
        plan_read(region[0:8], remote[0:8], route(), counter=1)


def test_offsets_beyond_32_bits_survive(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]
) -> None:
    region, remote = make_region(8192), make_remote(2**63 - 1)
    page = 4096
    last = (2**63 - 1 - page) // page
    _, pieces = unpack(plan_pages(region.pages([0, 1], page), remote.pages([last, 2**40], page), route(), counter=1))
    assert pieces["remote_offset"].tolist() == [last * page, 2**40 * page]


# -- scatter ----------------------------------------------------------------------------------------------------------

# Whatever integers come in. Those of 64 bits that lie next to each other are taken as they are, the others are copied.
INTEGERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda values: [int(value) for value in values],
    "array": lambda values: array.array("Q", [int(value) for value in values]),
    "uint64": lambda values: np.array(values, np.uint64),
    "int64": lambda values: np.array(values, np.int64),
    "uint32": lambda values: np.array(values, np.uint32),
    "big endian": lambda values: np.array(values, ">u8"),
    "every second": lambda values: np.repeat(np.array(values, np.uint64), 2)[::2],
    "backwards": lambda values: np.array(values, np.uint64)[::-1].copy()[::-1],
}


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000) | st.integers(0, 200_000), max_size=12),
    rails=st.integers(1, 5),
    largest=st.sampled_from([1000, 4096, 1 << 30]),
    cursor=st.integers(0, 9),
    prepared=st.sampled_from([None, *INTEGERS]),
    seed=st.integers(0, 2**32),
)
def test_scatters(  # noqa: PLR0913, PLR0917
    make_region: Callable[..., Region],
    make_remote: Callable[..., RemoteRegion],
    sizes: list[int],
    rails: int,
    largest: int,
    cursor: int,
    prepared: str | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    region = big_region(make_region)
    remotes = [make_remote(MIB) for _ in sizes]
    routes = [route(rails, largest, peer=10 + index, remote=100 + index) for index in range(len(sizes))]
    counters = [None if index % 3 == 2 else index for index in range(len(sizes))]
    begins, far = rng.integers(0, MIB, len(sizes)), rng.integers(0, MIB // 2, len(sizes))
    sources = [region[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]
    targets = [remote[begin : begin + size] for remote, begin, size in zip(remotes, far, sizes, strict=True)]
    if prepared is not None:
        take = INTEGERS[prepared]
        group = ScatterPlanner(region, remotes, routes, counters=counters)
        group.plan(np.zeros(len(sizes), int), np.zeros(len(sizes), int), [1] * len(sizes))  # leaves nothing behind
        plan = group.plan(take(begins), take(far), take(sizes), cursor=cursor)
    else:
        plan = plan_scatter(sources, targets, routes, counters=counters, cursor=cursor)
    runs, pieces = unpack(plan)
    assert plan.chunks == len(sizes)
    seen: Counter[int] = Counter()
    for index, size in enumerate(sizes):
        mine = runs[runs["peer"] == 10 + index]
        assert (mine["remote_region"] == 100 + index).all()
        assert mine["rail"][0] == (cursor + index) % rails
        chunk = pieces[mine["first"][0] : mine["first"][0] + mine["count"].sum()]
        whole, counter = len(chunk), counters[index]
        mine = mine.copy()
        mine["first"] -= mine["first"][0]  # as if it were alone
        mine, chunk = payload(mine, chunk, counter, 1)
        assert (mine["local_region"] == region.number).all()
        tiles(chunk, region.address + int(begins[index]), int(far[index]), size)
        assert (chunk["nbytes"] <= largest).all()
        seen[index] += whole
    assert seen.total() == len(pieces)


def test_scatter_needs_as_many_of_each(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion]
) -> None:
    region, remote = make_region(), make_remote()
    with pytest.raises(UsageError, match="2 sources, 1 targets, 1 routes and 1 counters"):
        plan_scatter([region[0:1]] * 2, [remote[0:1]], [route()], counters=[1])
    with pytest.raises(UsageError, match=r"target 1.*source is 5 B, target is 6 B"):
        plan_scatter([region[0:5]] * 2, [remote[0:5], remote[0:6]], [route()] * 2)
    with pytest.raises(UsageError, match="1 remotes, 2 routes"):
        ScatterPlanner(region, [remote], [route()] * 2)
    with pytest.raises(UsageError, match="REMOTE_WRITE"):
        ScatterPlanner(region, [make_remote(9, Access.REMOTE_READ)], [route()])


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        (([0, 65530], [0, 0], [1, 7]), r"source 1: bytes 65530 … 65537 are not within the 65536 B"),
        (([0, 0], [0, 100], [1, 1]), r"target 1: bytes 100 … 101 are not within the 100 B"),
        (([0, 0], [2**64 - 1, 0], [2, 1]), r"target 0"),
        (([2**64 - 1, 0], [0, 0], [2, 1]), r"source 0"),
        (([0, 0], [0, 0], [2**64 - 1, 1]), r"source 0"),
        (([0, 0], [0, 0], [1, -1]), r"lengths\[1\] = -1"),
        (([0], [0, 0], [1, 1]), "1 local offsets for 2 targets"),
        (([0, 0], [0, 0], [1.0, 1]), "lengths"),
    ],
)
def test_prepared_scatter_stays_inside(
    make_region: Callable[..., Region], make_remote: Callable[..., RemoteRegion], offsets: Any, words: str
) -> None:
    group = ScatterPlanner(make_region(), [make_remote(), make_remote(100)], [route()] * 2, counters=[1, None])
    with pytest.raises(UsageError, match=words):
        group.plan(*offsets)
    with pytest.raises(UsageError, match=words):
        group.plan(*(np.array(numbers, np.uint64 if max(numbers) >= 2**63 else None) for numbers in offsets))
    runs, pieces = unpack(group.plan(np.array([0, 8]), np.array([0, 90]), np.array([6, 10])))  # unharmed
    assert pieces["nbytes"].tolist() == [6, 10]
    assert len(runs) == 2
