"""Host memory: shareable allocations, and the bytes of arrays and buffers.

Registration is in :mod:`aio_transfer.regions`.
"""
