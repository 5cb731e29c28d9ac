"""Process on emulated devices: striped writes, each of which raises its counter by one.

``stripes.py COUNT NBYTES AT_ONCE``. A write that a device's fault fails must not count; it is submitted again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter

import anyio
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine
from aio_transfer.errors import ProviderError

SAY_EVERY = 250


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Compare by words: what says which differ is an eighth as large."""
    return bool((one.view(np.uint64) == other.view(np.uint64)).all())


async def main() -> None:
    """Perform all writes, and report how many failed and were submitted again."""
    count, nbytes, at_once = map(int, sys.argv[1:])
    rails = int(os.environ["EFA_EMULATOR_DEVICES"])
    options = {"libfabric": {"provider": "efa", "rails": rails}}
    seen: Counter[str] = Counter()
    began = time.perf_counter()
    async with (
        TransferEngine(backend="libfabric", label="from", options=options) as here,
        TransferEngine(backend="libfabric", label="to", options=options) as there,
    ):
        source, target = here.allocate(at_once * nbytes), there.allocate(at_once * nbytes)
        source[:] = np.random.default_rng(11).integers(0, 256, len(source), dtype=np.uint8)
        region, far = await here.register(source), await there.register(target)
        used = []

        async def repeat(slot: int) -> None:
            places = slice(slot * nbytes, (slot + 1) * nbytes)
            counter = None
            for turn in range(slot, count, at_once):
                source[places][:8] = np.frombuffer(turn.to_bytes(8, "little"), np.uint8)
                while True:
                    if counter is None:
                        counter = there.counter()
                        used.append([counter, 0])
                        remote, mine = RemoteRegion.from_bytes(bytes(far.descriptor(counter))), used[-1]
                    try:
                        await here.write(region[places], remote[places])
                    except ProviderError:
                        seen["failed"] += 1
                        counter = None  # its waiters are told of the failure from now on
                        continue
                    break
                await counter.wait(1)
                mine[1] += 1
                assert counter.value == mine[1], (counter.value, mine[1])
                assert same(target[places], source[places])
                seen["exact"] += 1
                if seen["exact"] % SAY_EVERY == 0:
                    print(f"{seen} {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)  # noqa: T201

        async with anyio.create_task_group() as tasks:
            for slot in range(at_once):
                tasks.start_soon(repeat, slot)
        await anyio.sleep(0.2)  # no event ends the wait for counts that must not come
        assert all(counter.value == expected for counter, expected in used)
        posted = here.statistics().drivers["libfabric"]["writes"]
    print(json.dumps(dict(seen) | {"pieces": posted, "seconds": time.perf_counter() - began}))  # noqa: T201


if __name__ == "__main__":
    anyio.run(main)
