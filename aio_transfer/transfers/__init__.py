"""Transfers: validation, planning, striping, routes, submission, and the awaitable ``Transfer``."""
