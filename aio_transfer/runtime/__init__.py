"""Adapters between the engine and the event loop: the only code that names asyncio and trio.

Everything above it uses anyio.
"""
