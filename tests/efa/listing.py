"""List of the efa provider's fabrics, as ``fi_info -p efa`` prints it: provider, fabric, domain, Gbit/s."""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import POINTER, Structure, c_char_p, c_size_t, c_uint32, c_uint64, c_void_p

from aio_transfer.backends.libfabric import _wheel_libraries


class Fabric(Structure):
    """The start of fi_fabric_attr."""

    _fields_ = (("fabric", c_void_p), ("name", c_char_p), ("provider", c_char_p))


class Domain(Structure):
    """The start of fi_domain_attr."""

    _fields_ = (("domain", c_void_p), ("name", c_char_p))


class Link(Structure):
    """The start of fi_link_attr."""

    _fields_ = (("address", c_char_p), ("mtu", c_size_t), ("speed", c_size_t))


class Nic(Structure):
    """The pointers of fid_nic, after its fid."""

    _fields_ = (("fid", c_void_p * 3), ("device", c_void_p), ("bus", c_void_p), ("link", POINTER(Link)))


class Info(Structure):
    """fi_info, as backends/libfabric/abi.h has it."""


Info._fields_ = (
    ("next", POINTER(Info)),
    ("caps", c_uint64),
    ("mode", c_uint64),
    ("addr_format", c_uint32),
    ("addrlens", c_size_t * 2),
    ("pointers", c_void_p * 6),
    ("domain", POINTER(Domain)),
    ("fabric", POINTER(Fabric)),
    ("nic", POINTER(Nic)),
)


def main() -> None:
    """Print one line of JSON for each."""
    library = ctypes.CDLL(_wheel_libraries()[0])
    first = POINTER(Info)()
    result = library.fi_getinfo(library.fi_version(), None, None, c_uint64(0), None, ctypes.byref(first))
    assert result == 0, result
    while first:
        info = first.contents
        names = (info.fabric.contents.provider, info.fabric.contents.name, info.domain.contents.name)
        speed = info.nic.contents.link.contents.speed // 10**9 if info.nic else 0
        print(json.dumps([*(name.decode() for name in names), speed]))  # noqa: T201 - the parent reads it
        first = info.next


if __name__ == "__main__":
    main()
    sys.exit(0)
