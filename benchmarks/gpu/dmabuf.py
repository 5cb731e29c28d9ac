"""Export memory of a CUDA device as an engine would, for arrays of CuPy and torch; a line of JSON says how each went.

No NIC is needed, and none is tried: it ends where ``ibv_reg_dmabuf_mr`` would begin. Exits 1 if a line is not as it
should be.
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
    """Make what users have: a name, the array, its pointer and its bytes."""
    with contextlib.suppress(ImportError):
        import cupy

        for name, nbytes in (("cupy 100 B", 100), ("cupy 1 MiB", MIB), ("cupy 1 GiB", 1 << 30)):
            array = cupy.arange(nbytes, dtype=cupy.uint8)
            yield name, array, array.data.ptr, nbytes
        pool = cupy.zeros(8 * MIB, cupy.uint8)
        yield "cupy, the middle of it", pool[4097 : 4097 + MIB], pool.data.ptr + 4097, MIB
        kernel = cupy.zeros((4, 5, 6), cupy.float16)
        yield "cupy, three dimensions", kernel, kernel.data.ptr, 240
        with cupy.cuda.using_allocator(cupy.cuda.MemoryAsyncPool().malloc):
            array = cupy.zeros(MIB, cupy.uint8)
            yield "cupy, of a stream's pool", array, array.data.ptr, MIB
    with contextlib.suppress(ImportError):
        import torch

        for kind in (torch.bfloat16, torch.float8_e4m3fn):
            tensor = torch.zeros(MIB, device="cuda").to(kind)
            yield f"torch {kind}", tensor, tensor.data_ptr(), tensor.nbytes
        cache = torch.zeros(16, 2, 1024, 1024, dtype=torch.float16, device="cuda")
        yield "torch, a layer of a cache", cache[3], cache[3].data_ptr(), cache[3].nbytes


def look(name: str, array: SupportsDlpack, pointer: int, nbytes: int) -> dict[str, object]:
    """Export one array, and look at the dma-buf."""
    said: dict[str, object] = {"array": name, "nbytes": nbytes, "within_page": pointer % mmap.PAGESIZE}
    began = time.perf_counter()
    try:
        buffer = DeviceBuffer.of_cuda(array, dlpack_device_bytes(array))
    except AioTransferError as error:
        return said | {"error": f"{type(error).__name__}: {error}"}
    said["export_us"] = round(1e6 * (time.perf_counter() - began), 1)
    memory = buffer.local_memory(Access.REMOTE_WRITE)
    fd = -1 if memory.fd is None else memory.fd
    said["file"] = str(pathlib.Path(f"/proc/self/fd/{fd}").readlink())
    said["file_nbytes"] = file_nbytes = os.lseek(fd, 0, os.SEEK_END)
    said["offset"] = memory.fd_offset
    said["cuda_device"] = memory.cuda_device
    said["well"] = (
        str(said["file"]).startswith("/dmabuf:")
        and memory.addr == pointer
        and memory.nbytes == nbytes
        and memory.fd_offset == pointer % mmap.PAGESIZE
        and memory.fd_offset + nbytes <= file_nbytes
    )
    try:
        mmap.mmap(fd, mmap.PAGESIZE).close()
        said["can_be_mapped"] = True
    except OSError:
        said["can_be_mapped"] = False
    buffer.release()
    said["closed"] = not pathlib.Path(f"/proc/self/fd/{fd}").exists()
    return said


async def refused(array: object) -> str:
    """Register it where no NIC is."""
    async with TransferEngine(backend="shm") as engine:
        try:
            await engine.register(array)
        except UnsupportedError as error:
            return str(error)
    return ""


def main() -> int:
    """Print a line per array; then what a thread gets that never used the device, and what an engine without a NIC."""
    lines = []
    last: tuple[str, SupportsDlpack, int, int] | None = None
    for last in arrays():
        lines.append(look(*last))
        print(json.dumps(lines[-1]), flush=True)
    if last is None:
        print(json.dumps({"error": "neither CuPy nor torch is here, or neither sees a device"}))
        return 1
    name, *rest = last
    thread = threading.Thread(target=lambda: lines.append(look(f"{name}, from another thread", *rest)))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    lines.append({"engine": (said := anyio.run(refused, last[1])), "well": "verbs" in said})
    for line in lines[-2:]:
        print(json.dumps(line))
    return 0 if all(line.get("well") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
