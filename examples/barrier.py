"""Peer group: every member scatters to all others, and a barrier synchronizes them."""

from __future__ import annotations

import contextlib

import anyio

from aio_transfer import PeerInfo, RemoteRegion, TransferEngine

MEMBERS = 4


async def member(rank: int, engines: list[TransferEngine], blobs: dict[int, bytes]) -> None:
    engine = engines[rank]
    others: list[PeerInfo] = [other.address for other in engines if other is not engine]
    group = await engine.group(others, name="demo")
    inbox = engine.allocate(MEMBERS)
    counter = engine.counter(sources=others)
    blobs[rank] = bytes((await engine.register(inbox)).descriptor(counter))
    await group.barrier()  # all descriptors are published
    source = await engine.register(bytearray([rank + 1]))
    remotes = [RemoteRegion.from_bytes(blobs[other]) for other in range(MEMBERS) if other != rank]
    await group.scatter([source[:]] * len(remotes), [remote[rank : rank + 1] for remote in remotes])
    await counter.wait(MEMBERS - 1)
    await group.barrier()
    print(f"rank {rank} has {inbox.tolist()} after {group.epoch} barriers")
    group.close()


async def main() -> None:
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(TransferEngine(label=f"rank{rank}")) for rank in range(MEMBERS)]
        blobs: dict[int, bytes] = {}
        async with anyio.create_task_group() as tasks:
            for rank in range(MEMBERS):
                tasks.start_soon(member, rank, engines, blobs)


if __name__ == "__main__":
    anyio.run(main)
