"""Process on emulated devices: two engines and transfers between them; reports the result in JSON."""

from __future__ import annotations

import json
import sys
import time

import anyio
import numpy as np

from aio_transfer import DmaBuf, RemoteRegion, TransferEngine
from aio_transfer.errors import BackendUnavailableError
from aio_transfer.memory.allocation import find_allocation

PAGE = 64 << 10
ROUNDS = 3
NOWHERE = 3 << 40


def dmabuf_of(array: np.ndarray, cuda_device: int | None) -> DmaBuf:
    """Return an array as a device's memory: its memfd stands for an export, and at the address there is nothing."""
    home = find_allocation(array.ctypes.data, array.nbytes)
    assert home is not None
    return DmaBuf(fd=home.fd, address=NOWHERE, nbytes=array.nbytes, cuda_device=cuda_device)


async def move(nbytes: int, options: dict[str, object], kind: str) -> dict[str, object]:
    """Write ``nbytes`` as one chunk and as pages, some times over; check every byte and every count."""
    settings = {"backend": "libfabric", "options": {"libfabric": options}}
    async with TransferEngine(label="from", **settings) as here, TransferEngine(label="to", **settings) as there:
        source, target = here.allocate(nbytes), there.allocate(nbytes)
        rng = np.random.default_rng(5)
        if kind == "host":
            region, far = await here.register(source), await there.register(target)
        else:
            device = 0 if kind == "cuda" else None
            region = await here.register(dmabuf_of(source, device))
            far = await there.register(dmabuf_of(target, device))
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
        source[:] = 0
        await here.read(region[PAGE:], remote[PAGE:])
        assert (source[PAGE:] == target[PAGE:]).all()
        await region.aclose()
        await far.aclose()
        assert first.path is not None
        speeds: dict[str, object] = {how: ROUNDS * nbytes / taken for how, taken in seconds.items()}
        return speeds | {"rails": first.path.rails}


async def main() -> None:
    """Run with the arguments: bytes, the backend's options in JSON, and ``host``, ``dmabuf`` or ``cuda`` memory."""
    options = {"provider": "efa"} | json.loads(sys.argv[2])
    try:
        said = await move(int(sys.argv[1]), options, sys.argv[3])
    except BackendUnavailableError as error:
        said = {"unavailable": str(error)}
    print(json.dumps(said))  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    anyio.run(main)
