"""Checks of invalid arguments: each gives a typed error before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aio_transfer.errors import BackendUnavailableError, ClosedError, UsageError
from aio_transfer.regions.descriptor import CounterRef
from aio_transfer.testing.assertions import MISTYPED, claim, refused
from aio_transfer.testing.fixtures import mesh, pair, ping
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.testing.spec import Spec


@check("bad input")
async def check_lengths_that_differ(spec: Spec) -> None:
    """Source and target of different lengths are refused by every operation, connected or not."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 256, rng), await Memory.open(b, 256, rng)
        counter = b.counter()
        remote, region = target.remote(counter), source.region
        for connected in (False, True):
            if connected:
                await a.connect(b.address)
            attempts: dict[str, Callable[[], object]] = {
                "write of 10 B to 11": lambda: a.submit_write(region[:10], remote[:11]),
                "write of 1 B to 0": lambda: a.submit_write(region[:1], remote[:0]),
                "pages of 8 B to 16": lambda: a.submit_write_pages(region.pages([0], 8), remote.pages([0], 16)),
                "2 pages to 3": lambda: a.submit_write_pages(region.pages([0, 1], 8), remote.pages([0, 1, 2], 8)),
                "0 pages to 1": lambda: a.submit_write_pages(region.pages([], 8), remote.pages([0], 8)),
                "scatter of 1 to 2": lambda: a.submit_scatter([region[:8]], [remote[:8], remote[8:16]]),
                "scatter of 8 B to 9": lambda: a.submit_scatter([region[:8]], [remote[:9]]),
                "2 counters for 1": lambda: a.submit_scatter([region[:8]], [remote[:8]], counters=[None, None]),
                "read of 9 B into 8": lambda: a.submit_read(region[:8], remote[:9]),
                "2 pages read into 1": lambda: a.submit_read_pages(region.pages([0], 8), remote.pages([0, 1], 8)),
            }
            for what, attempt in attempts.items():
                with refused(what, UsageError):
                    attempt()
        await ping(a, b)
        claim(counter.value == 0, f"refused operations gave {counter.value} counts")
        claim(region.leases == 0, f"refused operations hold {region.leases} leases")


@check("bad input")
async def check_slices_out_of_range(spec: Spec) -> None:
    """Slices that reach outside, run backwards or have a step are refused, on both sides."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        bad = [
            slice(0, 65),
            slice(65, 65),
            slice(-65, None),
            slice(10, 9),
            slice(0, 1 << 70),
            slice(None, None, 2),
            slice(None, None, -1),
            slice(0.5, 8),
            slice("a", None),
            slice(-1, 0),
            5,
            None,
            "all",
            (0, 8),
        ]
        for side in (source.region, target.remote(), source.region[8:40], target.remote()[8:40]):
            for key in bad:
                with refused(f"{side!r}[{key}]", UsageError):
                    side[key]  # type: ignore[index]
        claim(len(source.region[-10:-2]) == 8 and source.region[-10:-2].offset == 54, "negative bounds are wrong")
        part = target.remote()[10:50][5:][:-5]
        claim((part.offset, len(part)) == (15, 30), f"a part of a part is {part!r}")


@check("bad input")
async def check_page_ids_out_of_range(spec: Spec) -> None:
    """Page ids that are negative, too large or not integers, and pages that overflow, are refused on both sides."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 1024, rng), await Memory.open(b, 1024, rng)
        bad = [[16], [0, 1, 99], [-1], [1.0], [True], ["a"], [2**64], [2**63], [[0, 1]], None, "01", np.array([0.5])]
        for side in (source.region, target.remote()):
            for ids in bad:
                with refused(f"pages {ids!r} of 16", UsageError):
                    side.pages(ids, 64)  # type: ignore[arg-type]
            for page in (-1, 1025, 1.5, 2**63, 2**64, None):
                with refused(f"a page of {page!r} B", UsageError):
                    side.pages([0], page)  # type: ignore[arg-type]
            for key in (
                {"stride_nbytes": -1},
                {"offset_nbytes": -1},
                {"offset_nbytes": 1000},
                {"stride_nbytes": 2**62},
            ):
                with refused(f"page 1 with {key}", UsageError):
                    side.pages([1], 64, **key)


@check("bad input")
async def check_memory_that_is_not_registered(spec: Spec) -> None:
    """Memory of another engine, arrays, and whole regions in place of slices are refused with UsageError."""
    rng = spec.rng()
    async with mesh(spec, 3) as (a, b, c):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        foreign = await Memory.open(c, 64, rng)
        counter = b.counter()
        remote = target.remote(counter)
        with refused("a write from a region of another engine", UsageError):
            await a.write(foreign.region[:], remote[:])
        with refused("a scatter from a region of another engine", UsageError):
            await a.scatter([foreign.region[:]], [remote[:]])
        with refused("a write whose counter is another peer's", UsageError):
            await a.write(source.region[:], remote[:], counter=a.counter_ref(c.address, 1))
        attempts: dict[str, Callable[[], object]] = {
            "an array as source": lambda: a.submit_write(np.zeros(64, np.uint8), remote[:]),  # type: ignore[arg-type]
            "bytes as source": lambda: a.submit_write(bytes(64), remote[:]),  # type: ignore[arg-type]
            "a region as source": lambda: a.submit_write(source.region, remote[:]),  # type: ignore[arg-type]
            "a remote region as target": lambda: a.submit_write(source.region[:], remote),  # type: ignore[arg-type]
            "our own slice as target": lambda: a.submit_write(source.region[:], foreign.region[:]),  # type: ignore[arg-type]
            "a remote slice as source": lambda: a.submit_write(remote[:], remote[:]),  # type: ignore[arg-type]
            "slices as pages": lambda: a.submit_write_pages(source.region[:], remote[:]),  # type: ignore[arg-type]
            "pages as slices": lambda: a.submit_write(source.region.pages([0], 64), remote.pages([0], 64)),  # type: ignore[arg-type]
            "an array to read into": lambda: a.submit_read(np.zeros(64, np.uint8), remote[:]),  # type: ignore[arg-type]
        }
        for what, attempt in attempts.items():
            with refused(what, *MISTYPED):
                attempt()
        await ping(a, b)
        claim(counter.value == 0, f"refused writes gave {counter.value} counts")


@check("bad input")
async def check_closed_source(spec: Spec) -> None:
    """A slice of a region that was closed is refused, and so are its pages."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        part, pages, remote = source.region[:], source.region.pages([0], 64), target.remote()
        await source.region.aclose()
        attempts: dict[str, Callable[[], object]] = {
            "write": lambda: a.submit_write(part, remote[:]),
            "pages": lambda: a.submit_write_pages(pages, remote.pages([0], 64)),
            "scatter": lambda: a.submit_scatter([part], [remote[:]]),
            "read": lambda: a.submit_read(part, remote[:]),
        }
        for what, attempt in attempts.items():
            with refused(f"{what} with a slice of a closed region", ClosedError):
                attempt()


@check("bad input")
async def check_counter_ids_out_of_range(spec: Spec) -> None:
    """Counter ids that are negative, have more than 24 bits or are not integers are refused everywhere."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        remote = target.remote()
        for number in (-1, 1 << 24, 1 << 40, 1.5, "7"):
            with refused(f"a counter of id {number!r}", UsageError):
                b.counter(number)  # type: ignore[arg-type]
            with refused(f"a reference to counter {number!r}", UsageError):
                a.counter_ref(b.address, number)  # type: ignore[arg-type]
        with refused("a well-known counter with the bit of the private ones", UsageError):
            b.counter(1 << 23)
        for number in (-1, 1 << 24, 1 << 40):
            made = CounterRef(b.address, number)
            with refused(f"a write that raises counter {number}", UsageError):
                await a.write(source.region[:], remote[:], counter=made)
            with refused(f"pages that raise counter {number}", UsageError):
                await a.write_pages(source.region.pages([0], 8), remote.pages([0], 8), counter=made)
            with refused(f"a scatter that raises counter {number}", UsageError):
                await a.scatter([source.region[:]], [remote[:]], counters=[made])
            with refused(f"a notification of counter {number}", UsageError):
                await a.notify(made)


@check("bad input")
async def check_settings(spec: Spec) -> None:
    """Invalid settings are refused when the engine is created or entered."""
    bad: dict[str, dict[str, Any]] = {
        "a liveness timeout of 0": {"liveness_timeout_s": 0},
        "a negative deadline": {"connect_deadline_s": -1},
        "a stall time of 0": {"stall_s": 0.0},
        "a negative grace": {"grace_s": -0.1},
        "an empty secret": {"secret": b""},
        "a backend that does not exist": {"backend": "telegraph", "options": {}},
        "options of a backend that does not exist": {"options": {"telegraph": {}}},
        "no backend at all": {"backend": (), "options": {}},
        "a label of 200 characters": {"label": "x" * 200},
        "a label that is not ASCII": {"label": "Größe"},
        "a label of several lines": {"label": "a\nb"},
        "a port of 70000": {"port": 70000},
    }
    for what, settings in bad.items():
        with refused(f"an engine with {what}", UsageError, BackendUnavailableError):
            async with spec.engine(**settings):
                pass


@check("bad input")
async def check_counter_of_sources_that_are_none(spec: Spec) -> None:
    """A counter with sources that are not peers is refused, and is not left open."""
    async with pair(spec) as (a, _):
        for sources in (["b"], [None], [5]):
            with refused(f"a counter with sources {sources!r}", UsageError):
                a.counter(sources=sources)  # type: ignore[arg-type]
        with refused("a counter that has its own engine as source", UsageError):
            a.counter(sources=[a.address])
        claim(a.statistics().counters == 0, f"refused counters are open: {a.statistics().counters}")


@check("bad input")
async def check_allocate_what_cannot_be(spec: Spec) -> None:
    """Memory of no bytes, of negative or absurd size, or of objects is refused with a typed error."""
    async with pair(spec) as (a, _):
        for shape in (0, -1, (4, 0), (4, -4), (1 << 40, 1 << 40), 1.5, "4"):
            with refused(f"allocating {shape!r}", *MISTYPED):
                a.allocate(shape)  # type: ignore[arg-type]
        with refused("allocating objects", UsageError):
            a.allocate(4, object)
