"""Export of CUDA device memory as a dma-buf, as an engine does it, for arrays of CuPy and torch; one JSON line each.

No NIC is needed: it ends before ``ibv_reg_dmabuf_mr``. Exits with 1 if a line is not as expected.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pathlib
import sys
import threading
import time
from typing import TYPE_CHECKING

import anyio

from aio_transfer import Access, TransferEngine, UnsupportedError
from aio_transfer.errors import AioTransferError
from aio_transfer.gpu.dmabuf import DeviceBuffer
from aio_transfer.memory.dlpack import SupportsDlpack, dlpack_device_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


def arrays() -> Iterator[tuple[str, SupportsDlpack, int, int]]:
    """Yield arrays as users have them: a name, the array, its pointer and its bytes."""
    with contextlib.suppress(ImportError):
        import cupy

        for name, nbytes in (("cupy 100 B", 100), ("cupy 1 MiB", MIB), ("cupy 1 GiB", 1 << 30)):
            array = cupy.arange(nbytes, dtype=cupy.uint8)
            yield name, array, array.data.ptr, nbytes
        pool = cupy.zeros(8 * MIB, cupy.uint8)
        yield "cupy, a slice", pool[4097 : 4097 + MIB], pool.data.ptr + 4097, MIB
        kernel = cupy.zeros((4, 5, 6), cupy.float16)
        yield "cupy, three dimensions", kernel, kernel.data.ptr, 240
        with cupy.cuda.using_allocator(cupy.cuda.MemoryAsyncPool().malloc):
            array = cupy.zeros(MIB, cupy.uint8)
            yield "cupy, from a stream-ordered pool", array, array.data.ptr, MIB
    with contextlib.suppress(ImportError):
        import torch

        for kind in (torch.bfloat16, torch.float8_e4m3fn):
            tensor = torch.zeros(MIB, device="cuda").to(kind)
            yield f"torch {kind}", tensor, tensor.data_ptr(), tensor.nbytes
        cache = torch.zeros(16, 2, 1024, 1024, dtype=torch.float16, device="cuda")
        yield "torch, one layer of a cache", cache[3], cache[3].data_ptr(), cache[3].nbytes


def export(name: str, array: SupportsDlpack, pointer: int, nbytes: int) -> dict[str, object]:
    """Export one array, and check the dma-buf."""
    line: dict[str, object] = {"array": name, "nbytes": nbytes, "within_page": pointer % mmap.PAGESIZE}
    since = time.perf_counter()
    try:
        buffer = DeviceBuffer.of_cuda(array, dlpack_device_bytes(array))
    except AioTransferError as error:
        return line | {"error": f"{type(error).__name__}: {error}"}
    line["export_us"] = round(1e6 * (time.perf_counter() - since), 1)
    memory = buffer.local_memory(Access.REMOTE_WRITE)
    fd = -1 if memory.fd is None else memory.fd
    line["file"] = str(pathlib.Path(f"/proc/self/fd/{fd}").readlink())
    line["file_nbytes"] = file_nbytes = os.lseek(fd, 0, os.SEEK_END)
    line["offset"] = memory.fd_offset
    line["cuda_device"] = memory.cuda_device
    line["ok"] = (
        str(line["file"]).startswith("/dmabuf:")
        and memory.addr == pointer
        and memory.nbytes == nbytes
        and memory.fd_offset == pointer % mmap.PAGESIZE
        and memory.fd_offset + nbytes <= file_nbytes
    )
    try:
        mmap.mmap(fd, mmap.PAGESIZE).close()
        line["can_be_mapped"] = True
    except OSError:
        line["can_be_mapped"] = False
    buffer.release()
    line["closed"] = not pathlib.Path(f"/proc/self/fd/{fd}").exists()
    return line


async def registration_error(array: object) -> str:
    """Register an array with an engine without a NIC; returns the error."""
    async with TransferEngine(backend="shm") as engine:
        try:
            await engine.register(array)
        except UnsupportedError as error:
            return str(error)
    return ""


def main() -> int:
    """Print a line per array, one from a thread that has not used the device, and one of an engine without a NIC."""
    lines = []
    last: tuple[str, SupportsDlpack, int, int] | None = None
    for last in arrays():
        lines.append(export(*last))
        print(json.dumps(lines[-1]), flush=True)
    if last is None:
        print(json.dumps({"error": "neither CuPy nor torch is installed, or neither finds a device"}))
        return 1
    name, *rest = last
    thread = threading.Thread(target=lambda: lines.append(export(f"{name}, from another thread", *rest)))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    lines.append({"engine": (error := anyio.run(registration_error, last[1])), "ok": "verbs" in error})
    for line in lines[-2:]:
        print(json.dumps(line))
    return 0 if all(line.get("ok") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
