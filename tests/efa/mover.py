"""A process on emulated devices: two engines, and bytes between them. Says in JSON how it went."""

from __future__ import annotations

import json
import sys
import time

import anyio
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine
from aio_transfer.errors import BackendUnavailableError

PAGE = 64 << 10
ROUNDS = 3


async def move(nbytes: int, options: dict[str, object]) -> dict[str, object]:
    """Write ``nbytes`` as one chunk and as pages, some times over; check every byte and every count."""
    settings = {"backend": "libfabric", "options": {"libfabric": options}}
    async with TransferEngine(label="from", **settings) as here, TransferEngine(label="to", **settings) as there:
        source, target = here.allocate(nbytes), there.allocate(nbytes)
        rng = np.random.default_rng(5)
        region, far = await here.register(source), await there.register(target)
        counter = there.counter()
        remote = RemoteRegion.from_bytes(bytes(far.descriptor(counter)))
        pages = np.arange(nbytes // PAGE)
        seconds = {"chunk": 0.0, "pages": 0.0}
        first = here.submit_write(region[:PAGE], remote[:PAGE])
        await first
        await counter.wait(1)
        for _ in range(ROUNDS):
            for how in seconds:
                source[:] = rng.integers(0, 256, nbytes, dtype=np.uint8)
                began = time.perf_counter()
                if how == "chunk":
                    await here.write(region[:], remote[:])
                else:
                    await here.write_pages(region.pages(pages, PAGE), remote.pages(pages[::-1], PAGE))
                await counter.wait(1 if how == "chunk" else len(pages))
                seconds[how] += time.perf_counter() - began
                expected = source if how == "chunk" else source.reshape(-1, PAGE)[::-1].ravel()
                assert (target == expected).all()
        assert counter.value == 1 + ROUNDS * (1 + len(pages))
        assert first.path is not None
        speeds: dict[str, object] = {how: ROUNDS * nbytes / taken for how, taken in seconds.items()}
        return speeds | {"rails": first.path.rails}


async def main() -> None:
    """Do it as the arguments say: bytes, and the backend's options in JSON."""
    options = {"provider": "efa"} | json.loads(sys.argv[2])
    try:
        said = await move(int(sys.argv[1]), options)
    except BackendUnavailableError as error:
        said = {"unavailable": str(error)}
    print(json.dumps(said))  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    anyio.run(main)
