"""Checks of the machine we run on: what works, what does not, and the command that mends it."""

from aio_transfer.doctor.check import Check, Host, Status
from aio_transfer.doctor.everything import examine

__all__ = ("Check", "Host", "Status", "examine")
