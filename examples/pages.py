"""KV-cache pages: scattered in source and target, one count per page, in no particular order."""

from __future__ import annotations

import anyio
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine

PAGES, PAGE_NBYTES = 256, 16 << 10


async def main() -> None:
    async with TransferEngine(label="decode") as decode, TransferEngine(label="prefill") as prefill:
        cache = decode.allocate((PAGES, PAGE_NBYTES))
        counter = decode.counter()
        region = await decode.register(cache)
        free = np.random.default_rng(1).permutation(PAGES)[:32]  # free pages of the decoder
        remote = RemoteRegion.from_bytes(bytes(region.descriptor(counter)))

        computed = prefill.allocate((PAGES, PAGE_NBYTES))
        computed[:] = np.arange(PAGES, dtype=np.uint8)[:, None]
        source = await prefill.register(computed)
        ours = np.arange(32)
        transfer = prefill.submit_write_pages(source.pages(ours, PAGE_NBYTES), remote.pages(free, PAGE_NBYTES))

        await counter.wait(32)  # on the decoder: every page has arrived
        await transfer  # on the prefiller: its pages may be overwritten
        assert (cache[free] == computed[ours]).all()
        print(f"{transfer.count} pages, {transfer.nbytes} B, by {transfer.path}")


if __name__ == "__main__":
    anyio.run(main)
