"""Control plane: framed connections, the handshake, and the frames that two engines exchange.

It moves no payload and knows no transport. Who connects to whom is decided in :mod:`aio_transfer.peers`.
"""
