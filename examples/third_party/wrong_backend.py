"""The same backend with one mistake: a count goes up before its payload is there, and rule 2 is broken.

That is easy to do: a payload that is copied by one thread, or one queue, while another reports the arrival.
"""

import time

from sockets_backend import FRAME, SocketsDriver

from aio_transfer.driver.records import Op, PieceFlag


class WrongDriver(SocketsDriver):
    def _apply(self, frame: bytes) -> bytes:
        op, flags, immediate, *place = FRAME.unpack_from(frame)
        if op == Op.WRITE and flags & PieceFlag.IMMEDIATE:
            self._ledger.count(immediate)
            time.sleep(0.0005)  # it shows without this too, only not in every run
            frame = FRAME.pack(op, 0, immediate, *place) + frame[FRAME.size :]
        return super()._apply(frame)
