"""Peers: connections, their state machine and lifecycle, the connection manager, and messages.

The bytes of handshake and frames are in :mod:`aio_transfer.control`; the data paths are in the backends.
"""
