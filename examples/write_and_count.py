"""One write and one count: the sender awaits the acknowledgement, the receiver awaits the arrival.

Run it without arguments: it starts its own second process. In a cluster, send the descriptor over any channel: an HTTP
body, a queue, a file.
"""

from __future__ import annotations

import subprocess
import sys

import anyio

from aio_transfer import RemoteRegion, TransferEngine


async def receive() -> None:
    async with TransferEngine() as engine:
        inbox = engine.allocate(1 << 20)
        region = await engine.register(inbox)
        counter = engine.counter()
        blob = bytes(region.descriptor(counter))
        sender = subprocess.Popen([sys.executable, __file__, blob.hex()])  # noqa: S603
        await counter.wait(1)  # the payload is visible now
        print("received:", bytes(inbox[:17]).decode())
        assert sender.wait() == 0


async def send(blob: bytes) -> None:
    async with TransferEngine() as engine:
        source = await engine.register(bytearray(b"one-sided, hello!"))
        remote = RemoteRegion.from_bytes(blob)
        await engine.write(source[:], remote[: len(source)])
        print("sent by", engine.statistics().peers)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        anyio.run(send, bytes.fromhex(sys.argv[1]))
    else:
        anyio.run(receive)
