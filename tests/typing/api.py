"""The API as a type checker sees it. Checked by mypy on the lowest and highest Python; never run."""

from __future__ import annotations

from typing import assert_type

import numpy as np

from aio_transfer import (
    Access,
    CounterRef,
    ImmCounter,
    Pages,
    Peer,
    PeerGroup,
    ReceivedMessage,
    Region,
    RegionDescriptor,
    RemotePages,
    RemoteRegion,
    RemoteSlice,
    Slice,
    Transfer,
    TransferEngine,
    TransportPath,
)


async def use() -> None:
    async with TransferEngine(backend="shm", secret=b"0123456789abcdef") as engine:
        assert_type(engine, TransferEngine)
        array = engine.allocate((4, 4096), np.float32)
        region = await engine.register(array, access=Access.REMOTE_READ)
        assert_type(region, Region)
        assert_type(region[0:16], Slice)
        assert_type(region.pages([0, 1], 4096), Pages)
        counter = engine.counter()
        assert_type(counter, ImmCounter)
        assert_type(region.descriptor(counter), RegionDescriptor)
        assert_type(bytes(region.descriptor()), bytes)

        remote = RemoteRegion.from_bytes(b"")
        assert_type(remote, RemoteRegion)
        assert_type(remote[:4], RemoteSlice)
        assert_type(remote.pages(np.arange(3), 4096), RemotePages)
        assert_type(remote.counter, CounterRef | None)

        peer = await engine.connect(remote)
        assert_type(peer, Peer)
        transfer = engine.submit_write_pages(region.pages([0], 4096), remote.pages([1], 4096))
        assert_type(transfer, Transfer)
        assert_type(transfer.path, TransportPath | None)
        assert_type(await transfer, None)
        assert_type(await counter.wait(3), None)
        assert_type(counter.value, int)
        group = await engine.group([peer])
        assert_type(group, PeerGroup)
        assert_type(await group.barrier(), None)
        async for message in engine.messages():
            assert_type(message, ReceivedMessage)
            assert_type(message.payload, bytes)

        await engine.write(remote[:1], region[:1])  # type: ignore[arg-type]
        await counter.wait("3")  # type: ignore[arg-type]
        engine.counter("7")  # type: ignore[arg-type]
