"""Test of application code on a simulated fabric: packets in any order, full queues, failures on request.

The code under test is ``gather``: it waits for pages from several senders and must report only complete ones.
"""

from __future__ import annotations

import anyio
import numpy as np

from aio_transfer import ImmCounter, ProviderError, RemoteRegion, TransferAbortedError, TransferEngine
from aio_transfer.testing import Faults, SimFabric

PAGE = 4096


async def gather(counter: ImmCounter, pages: int) -> str:
    try:
        await counter.wait(pages)
    except TransferAbortedError as error:
        return f"a sender failed: {error.operation}"
    return "complete"


async def send(engine: TransferEngine, blob: bytes, page: int) -> None:
    source = await engine.register(np.full(PAGE, page + 1, np.uint8))
    remote = RemoteRegion.from_bytes(blob)
    await engine.write(source[:], remote[page * PAGE : (page + 1) * PAGE])


async def main() -> None:
    fabric = SimFabric(seed=7, mtu=512, faults=Faults(eagain=0.3))  # the same seed: the same run
    async with fabric.engine(nics=4) as receiver, fabric.engine() as one, fabric.engine(nics=2) as other:
        inbox = receiver.allocate(3 * PAGE)
        region = await receiver.register(inbox)
        counter = receiver.counter()
        blob = bytes(region.descriptor(counter))

        fabric.stall(receiver, nic=0)  # one of its four NICs sleeps until both have sent
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, one, blob, 0)
            tasks.start_soon(send, other, blob, 1)
            await anyio.lowlevel.checkpoint()
            fabric.resume(receiver, nic=0)
        print("two pages:", await gather(counter, 2))
        assert (inbox[: 2 * PAGE].reshape(2, PAGE) == [[1], [2]]).all()

        fabric.fail_completions(one)  # after half of its bytes
        try:
            await send(one, blob, 2)
        except ProviderError as error:
            print("the sender sees:", error)
        print("a third:", await gather(counter, 1))


if __name__ == "__main__":
    anyio.run(main)
