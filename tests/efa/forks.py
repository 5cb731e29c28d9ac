"""Process on emulated devices that forks: ``forks.py SCENE``; reports in JSON what its child found."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import anyio

from aio_transfer import RemoteRegion, TransferEngine
from aio_transfer.errors import AioTransferError

if TYPE_CHECKING:
    from collections.abc import Callable

NBYTES = 1 << 20


async def write(options: dict[str, object], between: Callable[[], object] = int) -> str:
    """Write twice over engines with these options, do something in between, and report what was refused."""
    settings = {"backend": "libfabric", "options": {"libfabric": {"provider": "efa"} | options}}
    try:
        async with TransferEngine(label="from", **settings) as here, TransferEngine(label="to", **settings) as there:
            source, far = await here.register(here.allocate(NBYTES)), await there.register(there.allocate(NBYTES))
            counter = there.counter()
            remote = RemoteRegion.from_bytes(bytes(far.descriptor(counter)))
            for act in (between, int):
                await here.write(source[:], remote[:])
                await counter.wait(1)
                act()
    except AioTransferError as error:
        return f"{type(error).__name__}: {error}"
    return "written"


def forked(act: Callable[[], str]) -> str:
    """Return what a child says of it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(theirs, act().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def after() -> dict[str, str]:
    """Fork where the devices have been used."""
    before = anyio.run(write, {})
    return {"parent": before, "child": forked(lambda: anyio.run(write, {})), "again": anyio.run(write, {})}


def first() -> dict[str, str]:
    """Fork before they are."""
    return {"child": forked(lambda: anyio.run(write, {})), "parent": anyio.run(write, {})}


def amid(options: dict[str, object]) -> dict[str, str]:
    """Fork while an engine is open, for something that has nothing to do with it."""
    said: list[str] = []
    return {"parent": anyio.run(write, options, lambda: said.append(forked(lambda: "well"))), "child": said[0]}


def late() -> dict[str, str]:
    """Want other settings of a provider that is loaded."""
    return {"first": anyio.run(write, {"huge_pages": False})} | {
        name: anyio.run(write, options)
        for name, options in {
            "same": {"huge_pages": False},
            "other": {"huge_pages": True},
            "fork": {"fork_safe": True},
            "neither": {"fork_safe": "perhaps"},
            "both": {"huge_pages": True, "fork_safe": True},
        }.items()
    }


if __name__ == "__main__":
    scenes = {"after": after, "first": first, "amid": lambda: amid({}), "safe": lambda: amid({"fork_safe": True})}
    print(json.dumps((scenes | {"late": late})[sys.argv[1]]()))  # noqa: T201 - the parent reads it
