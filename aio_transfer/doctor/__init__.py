"""Checks of this machine: what works, what does not, and the command that fixes it."""

from aio_transfer.doctor.check import Check, Status
from aio_transfer.doctor.everything import examine

__all__ = ("Check", "Status", "examine")
