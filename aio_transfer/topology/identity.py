"""Who we are: which host this process lives on, and which run of the process it is."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import Final

__all__ = ("HOST_IDENTITY_NBYTES", "INCARNATION_NBYTES", "host_identity", "new_incarnation", "new_session")

INCARNATION_NBYTES: Final = 16
HOST_IDENTITY_NBYTES: Final = 32
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
# Abstract AF_UNIX names belong to a network namespace, and pidfds and /proc to a pid namespace: two processes that
# differ in either are, for us, on different hosts even under one kernel.
_NAMESPACES: Final = ("/proc/self/ns/net", "/proc/self/ns/pid")


@functools.cache
def host_identity() -> bytes:
    """Name the host, as far as sharing memory goes.

    Equal identities make it worth trying AF_UNIX; they prove nothing, since machines restored from one snapshot share a
    boot id. Only a connection over AF_UNIX proves that two processes share a host.

    :returns: 32 bytes; where ``/proc`` does not tell, random ones, which equal nobody's
    """
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            parts = (file.read().strip(), *map(os.readlink, _NAMESPACES))
    except OSError:
        return os.urandom(HOST_IDENTITY_NBYTES)
    return hashlib.sha256("\0".join(("aio-transfer host", *parts)).encode()).digest()


def new_incarnation() -> bytes:
    """Name one life of one engine: a restarted process never has the name of the one before.

    :returns: 16 random bytes
    """
    return os.urandom(INCARNATION_NBYTES)


def new_session() -> bytes:
    """Name one session between two incarnations; the dialer chooses.

    :returns: 16 random bytes
    """
    return os.urandom(INCARNATION_NBYTES)
