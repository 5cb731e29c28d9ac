"""Process on emulated devices whose links are cut and restored: ``links.py greeting|rail asyncio|trio FILE``."""

from __future__ import annotations

import json
import pathlib
import sys
import time

import anyio
import anyio.lowlevel
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine
from aio_transfer.errors import ProviderError

MIB = 1 << 20
NBYTES = 8 * MIB
DEADLINE_S = 1.5
LINKS = pathlib.Path(sys.argv[3])


def set_links(states: str) -> None:
    """Say which devices have a link; the emulator never sees half of it."""
    new = LINKS.with_suffix(".new")
    new.write_text(states)
    new.replace(LINKS)


def open_engine(label: str, rails: int) -> TransferEngine:
    """Open one that gives up soon."""
    options = {"provider": "efa", "rails": rails, "post_deadline_s": DEADLINE_S}
    return TransferEngine(backend="libfabric", label=label, options={"libfabric": options})


async def greet() -> dict[str, object]:
    """Write where no packet has ever come through, and once more when it does."""
    set_links("0")
    async with open_engine("from", 1) as here, open_engine("to", 1) as there:
        region, far = await here.register(here.allocate(MIB)), await there.register(there.allocate(MIB))
        counter = there.counter()
        remote = RemoteRegion.from_bytes(bytes(far.descriptor(counter)))
        await here.connect(remote.peer)  # over the control connection, which has nothing to do with the devices
        began = time.perf_counter()
        try:
            await here.write(region[:], remote[:])
        except ProviderError as error:
            said, seconds = str(error), time.perf_counter() - began
        set_links("1")
        fresh = there.counter()
        remote = RemoteRegion.from_bytes(bytes(far.descriptor(fresh)))
        while True:  # until the provider repeats its handshake
            try:
                await here.write(region[:], remote[:])
                break
            except ProviderError:
                await anyio.sleep(0.1)  # the provider repeats its handshake some seconds later, without an event
        return {"said": said, "seconds": seconds}


async def lose_a_rail() -> dict[str, object]:
    """Cut one of two links in the middle of a write; what follows takes the other, and both when it is back."""
    set_links("11")
    rng = np.random.default_rng(7)
    async with open_engine("from", 2) as here, open_engine("to", 2) as there:
        source, target = here.allocate(NBYTES), there.allocate(NBYTES)
        source[:] = rng.integers(1, 256, NBYTES, dtype=np.uint8)
        region, far = await here.register(source), await there.register(target)
        counter = there.counter()
        await here.write(region[:], RemoteRegion.from_bytes(bytes(far.descriptor(counter)))[:])
        await counter.wait(1)
        target[:] = 0
        transfer = here.submit_write(region[:], RemoteRegion.from_bytes(bytes(far.descriptor(counter)))[:])
        while not target.any():
            await anyio.lowlevel.checkpoint()
        set_links("10")
        began = time.perf_counter()
        try:
            await transfer
        except ProviderError as error:
            said, seconds = str(error), time.perf_counter() - began
        value = counter.value
        spans = []
        for links in ("10", "11"):
            set_links(links)
            for _ in range(6):
                target[:] = 0
                fresh = there.counter()
                began = time.perf_counter()
                await here.write(region[:], RemoteRegion.from_bytes(bytes(far.descriptor(fresh)))[:])
                await fresh.wait(1)
                spans.append(time.perf_counter() - began)
                assert (target == source).all()
                assert fresh.value == 1
        return {"said": said, "seconds": seconds, "value": value, "spans": spans}


if __name__ == "__main__":
    scenes = {"greeting": greet, "rail": lose_a_rail}
    print(json.dumps(anyio.run(scenes[sys.argv[1]], backend=sys.argv[2])))  # noqa: T201 - the parent reads it
