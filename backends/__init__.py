"""Backends: one package per transport, each with a ``BACKEND``; ``native`` and ``core`` are what they share.

:mod:`aio_transfer.driver.backend_registry` finds them here by name. Nothing above the driver seam imports a transport.
"""
