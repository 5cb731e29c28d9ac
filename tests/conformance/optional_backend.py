"""The example's backend with both optional methods of a driver, in pure Python."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from sockets_backend import SocketsDriver

from aio_transfer.driver import RUN_STRUCT, Backend, Capabilities, CounterId, Option, OptionTable, TransferId

if TYPE_CHECKING:
    from collections.abc import Sequence

SPIN_S = 1e-4


class OptionalDriver(SocketsDriver):
    calls = 0
    """Of post_each, by all drivers: the tests see that the engine takes it."""

    def __init__(self, *, progress: str = "adaptive") -> None:
        super().__init__()
        self._spins = progress == "spin"

    def open(self) -> Capabilities:
        return replace(super().open(), backend="optional", spins=self._spins)

    def spin_wait(self, counter: CounterId, counts: int) -> int:
        ends = time.perf_counter() + SPIN_S
        while (total := self.expect(counter, 0)) < counts and time.perf_counter() < ends:
            time.sleep(0)  # the thread that receives needs the GIL
        return total

    def post_each(self, first: TransferId, runs: Any, pieces: Any) -> Sequence[int]:
        OptionalDriver.calls += 1
        records, size = bytes(runs), RUN_STRUCT.size
        return [
            index
            for index in range(len(records) // size)
            if not self.post(TransferId(first + index), records[index * size : (index + 1) * size], pieces)
        ]


BACKEND = Backend(
    name="optional",
    create=OptionalDriver,
    options=OptionTable(Option("progress", str, "adaptive", "How a wait begins.", choices=("adaptive", "spin"))),
)
