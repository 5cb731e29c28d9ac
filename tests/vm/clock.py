"""Frequency of the time-stamp counter, given to the guest at boot.

A guest without enough CPU time at boot measures it wrongly: one guest took 2.6 s for each second of the host.
"""

from __future__ import annotations

import ctypes
import mmap
import time

RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""rdtsc; shl rdx, 32; or rax, rdx; ret"""
INTERVAL_S = 0.2


def tsc_khz() -> int:
    """Measure it."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(RDTSC)
        code = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
        began, first = _together(read)
        time.sleep(INTERVAL_S)
        ended, last = _together(read)
        del read, code
    return round((last - first) * 1_000_000 / (ended - began))


def _together(read: ctypes._CFunctionType) -> tuple[int, int]:
    """Return nanoseconds and ticks of one moment: of many pairs the one that was read fastest."""
    pairs = []
    for _ in range(1000):
        before, ticks, after = time.monotonic_ns(), read(), time.monotonic_ns()
        pairs.append((after - before, (before + after) // 2, ticks))
    _, moment, ticks = min(pairs)
    return moment, ticks
