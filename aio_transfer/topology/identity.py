"""Identities on the control plane: of the host, of one engine's lifetime, and of one session between two engines."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import Final

__all__ = ("HOST_IDENTITY_NBYTES", "INCARNATION_NBYTES", "host_identity", "new_incarnation", "new_session")

INCARNATION_NBYTES: Final = 16
HOST_IDENTITY_NBYTES: Final = 32
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
# Abstract AF_UNIX names belong to a network namespace, pidfds and /proc to a PID namespace. Processes that differ in
# either cannot use shared memory with each other: they count as different hosts even under one kernel.
_NAMESPACES: Final = ("/proc/self/ns/net", "/proc/self/ns/pid")


@functools.cache
def host_identity() -> bytes:
    """Return the identity of this host for shared memory: a hash of the boot id and the namespaces.

    Equal identities are a reason to try AF_UNIX and no proof, since machines restored from one snapshot share a boot
    id. Only a connection over AF_UNIX proves that two processes share a host.

    :returns: 32 bytes; random if ``/proc`` is not readable, so that they equal no other identity
    """
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            parts = (file.read().strip(), *map(os.readlink, _NAMESPACES))
    except OSError:
        return os.urandom(HOST_IDENTITY_NBYTES)
    return hashlib.sha256("\0".join(("aio-transfer host", *parts)).encode()).digest()


def new_incarnation() -> bytes:
    """Return a new identity for one lifetime of one engine; a restarted process never gets an earlier one.

    :returns: 16 random bytes
    """
    return os.urandom(INCARNATION_NBYTES)


def new_session() -> bytes:
    """Return a new identity for one session between two incarnations; the dialer chooses it.

    :returns: 16 random bytes
    """
    return os.urandom(INCARNATION_NBYTES)
