"""The same backend with one mistake: a counter is raised before the payload is in place, which breaks rule 2.

That is easy to do: one thread or queue copies a payload while another reports its arrival.
"""

import time

from sockets_backend import FRAME, SocketsDriver

from aio_transfer.driver import Backend, Op, PieceFlag


class WrongDriver(SocketsDriver):
    def _apply(self, frame: bytes) -> bytes:
        op, flags, immediate, *place = FRAME.unpack_from(frame)
        if op == Op.WRITE and flags & PieceFlag.IMMEDIATE:
            self._events.count(immediate)
            time.sleep(0.0005)  # it shows without this too, but not in every run
            frame = FRAME.pack(op, 0, immediate, *place) + frame[FRAME.size :]
        return super()._apply(frame)


BACKEND = Backend(name="wrong", create=WrongDriver)
