"""Peers: connections, the connection manager, and messages.

The bytes of the handshake are in :mod:`aio_transfer.control`.
"""
