"""Process on an emulated device: one engine writes many small pages to each of several peers at once."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine

PEERS = 3
PAGES = np.arange(4096)  # as many as may be under way, so that nothing but the policy holds them up
PAGE = 64
ROUNDS = 5


async def main() -> None:
    """See that all of them count."""
    options = {"libfabric": {"provider": "efa", "depth": len(PAGES)}}
    async with AsyncExitStack() as stack:
        here, *there = [
            await stack.enter_async_context(TransferEngine(backend="libfabric", options=options))
            for _ in range(1 + PEERS)
        ]
        source = await here.register(here.allocate(len(PAGES) * PAGE))
        counters = [engine.counter() for engine in there]
        remotes = []
        for engine, counter in zip(there, counters, strict=True):
            region = await engine.register(engine.allocate(len(PAGES) * PAGE))
            remotes.append(RemoteRegion.from_bytes(bytes(region.descriptor(counter))))
            await here.write(source[:], remotes[-1][:])  # so that the peers have met
            await counter.wait(1)
        pages = source.pages(PAGES, PAGE)
        for _ in range(ROUNDS):
            for transfer in [here.submit_write_pages(pages, remote.pages(PAGES, PAGE)) for remote in remotes]:
                await transfer
            for counter in counters:
                await counter.wait(len(PAGES))


if __name__ == "__main__":
    anyio.run(main)
