"""Every page is inside, or the first that is not is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.errors import UsageError
from aio_transfer.regions.pages import unsigned

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.regions.region import Region, RemoteRegion


@pytest.mark.parametrize(
    "ids",
    [
        [0, 3, 1],
        (0, 3, 1),
        np.array([0, 3, 1]),
        np.array([0, 3, 1], np.uint64),
        np.array([0, 3, 1], "u1"),
        np.array([0, 3, 1], ">i2"),
        np.array([0, 9, 3, 9, 1, 9])[::2],
        [np.int32(0), 3, np.uint8(1)],
    ],
)
def test_ids_of_every_integer_kind(make_region: Callable[..., Region], ids: Any) -> None:
    pages = make_region(4096).pages(ids, 1024)
    assert pages.ids.dtype == np.uint64
    assert pages.ids.tolist() == [0, 3, 1]
    assert (len(pages), pages.nbytes) == (3, 3072)


@pytest.mark.parametrize("ids", [[], (), range(0), np.empty(0, int), np.empty(0, "u2")])
def test_no_page_is_fine(make_region: Callable[..., Region], ids: Any) -> None:
    assert len(make_region(10).pages(ids, 4096)) == 0


@pytest.mark.parametrize("ids", [range(4), range(3, -1, -1), range(0, 4, 3)])
def test_ranges(make_region: Callable[..., Region], ids: range) -> None:
    assert make_region(4096).pages(ids, 1024).ids.tolist() == list(ids)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([True, False], r"ids\[0\] = True is not an integer"),
        (np.array([True]), "not bool"),
        ([0, 1.0], r"ids\[1\] = 1.0 is not an integer"),
        (np.array([1.0]), "not float64"),
        (np.empty(0), "not float64"),
        ([0, None], r"ids\[1\] = None"),
        (["a"], r"ids\[0\] = 'a'"),
        ("12", "one-dimensional"),
        (5, "one-dimensional"),
        ([[0, 1]], "one-dimensional"),
        ([[0], [1, 2]], "cannot be read"),
        (iter([1]), "one-dimensional"),
        (range(2**64, 2**64 + 2), "cannot be read"),
        ([0, -1, -2], r"ids\[1\] = -1 is negative"),
        (np.array([5, 4, -7]), r"ids\[2\] = -7 is negative"),
        ([0, 2**64], r"ids\[1\] = 18446744073709551616 is not"),
        ([2**63, -1], r"ids\[1\] = -1"),
        (np.zeros(3, object), "not object"),
        (np.zeros(3, "M8[s]"), "not datetime64"),
    ],
)
def test_what_is_no_id_is_refused(make_region: Callable[..., Region], ids: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_region(65536).pages(ids, 16)


def test_first_id_outside_is_named(make_region: Callable[..., Region]) -> None:
    with pytest.raises(
        UsageError, match=r"ids\[2\] = 4 lies at bytes 4096 … 5120 of .* has 4096 B: the largest id is 3"
    ):
        make_region(4096).pages([0, 3, 4, 1, 9], 1024)


@pytest.mark.parametrize("largest", [2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_nothing_wraps(make_remote: Callable[..., RemoteRegion], largest: int) -> None:
    region = make_remote(2**63 - 1)
    for stride in (1, 2, 4096, 2**32, 2**63 - 1):
        ids = np.array([0, largest], np.uint64)
        if largest * stride + 16 <= region.nbytes:
            assert len(region.pages(ids, 16, stride_nbytes=stride)) == 2
        else:
            with pytest.raises(UsageError, match=rf"ids\[1\] = {largest} lies"):
                region.pages(ids, 16, stride_nbytes=stride)
    assert len(region.pages(np.array([largest], np.uint64), 16, stride_nbytes=0)) == 1


@pytest.mark.parametrize(
    "sizes",
    [
        {"page_nbytes": -1},
        {"page_nbytes": 1.5},
        {"page_nbytes": 2**63},
        {"page_nbytes": 8, "stride_nbytes": -8},
        {"page_nbytes": 8, "offset_nbytes": -1},
        {"page_nbytes": 8, "offset_nbytes": "0"},
        {"page_nbytes": 65},
        {"page_nbytes": 8, "offset_nbytes": 57},
        {"page_nbytes": 0, "offset_nbytes": 65},
        {"page_nbytes": 65, "stride_nbytes": 0},
    ],
)
def test_impossible_sizes_are_refused(make_region: Callable[..., Region], sizes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_region(64).pages([0], **sizes)


def test_empty_pages_are_pure_counts(make_region: Callable[..., Region]) -> None:
    pages = make_region(64).pages([0, 2**40, 3], 0)
    assert (len(pages), pages.nbytes) == (3, 0)


def test_stride_one_makes_ids_byte_offsets(make_region: Callable[..., Region]) -> None:
    pages = make_region(64).pages([60, 1, 33], 4, stride_nbytes=1)
    out = np.empty(3, np.uint64)
    pages._write_addresses(out, 0)
    assert out.tolist() == [60, 1, 33]
    with pytest.raises(UsageError, match=r"ids\[0\] = 61"):
        make_region(64).pages([61], 4, stride_nbytes=1)


def test_ids_are_a_copy_nobody_can_change(make_region: Callable[..., Region]) -> None:
    for dtype in (np.int64, np.uint64):
        ids = np.zeros(2, dtype)
        pages = make_region(64).pages(ids, 8)
        ids[:] = 1000
        assert pages.ids.tolist() == [0, 0]
        with pytest.raises(ValueError, match="read-only"):
            pages.ids[0] = 1


@given(
    nbytes=st.integers(1, 2**63 - 1),
    page=st.integers(0, 2**63 - 1),
    stride=st.integers(0, 2**63 - 1),
    offset=st.integers(0, 2**63 - 1),
    ids=st.lists(st.integers(0, 2**64 - 1), max_size=5),
)
def test_inside_means_inside_in_pythons_integers(
    make_remote: Callable[..., RemoteRegion], nbytes: int, page: int, stride: int, offset: int, ids: list[int]
) -> None:
    begins = [offset + number * stride for number in ids]
    outside = [index for index, begin in enumerate(begins) if begin + page > nbytes]
    region = make_remote(nbytes)
    numbers = np.array(ids, np.uint64)
    if outside:
        with pytest.raises(UsageError, match=rf"ids\[{outside[0]}\] = {ids[outside[0]]} lies at bytes"):
            region.pages(numbers, page, stride_nbytes=stride, offset_nbytes=offset)
        return
    out = np.empty(len(ids), np.uint64)
    region.pages(numbers, page, stride_nbytes=stride, offset_nbytes=offset)._write_addresses(out, 0)
    assert out.tolist() == begins


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_any_list_of_64_bit_numbers_is_read_exactly(values: list[int]) -> None:
    assert unsigned(values, "values").tolist() == values
