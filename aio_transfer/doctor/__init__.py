"""Checks of this machine: limits, libraries, devices and permissions, each with the command that fixes a fault."""

from aio_transfer.doctor.all_checks import examine
from aio_transfer.doctor.host_check import HostCheck, Status

__all__ = ("HostCheck", "Status", "examine")
