# ruff: noqa: N802 - the names are libcuda's

"""Memory of devices: the dma-buf of a CUDA array, by a driver that is not there, and what an engine makes of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from aio_transfer import Access, DmaBuf, RemoteRegion, TransferEngine
from aio_transfer.backends.sim import SimDriver
from aio_transfer.errors import (
    BackendUnavailableError,
    ClosedError,
    ProviderError,
    StaleRegionError,
    UnsupportedError,
    UsageError,
)
from aio_transfer.gpu import driver_api
from aio_transfer.gpu.dmabuf import DeviceBuffer
from aio_transfer.memory.allocation import allocate
from aio_transfer.memory.buffers import memory_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

PAGE = mmap.PAGESIZE


class FakeCuda:
    """The calls of libcuda that we make; its device memory is a memfd's, mapped here."""

    def __init__(self) -> None:
        self.memory = allocate(4 * PAGE)
        self.supported = 1
        self.refusal = 0
        self.ranges: list[tuple[int, int]] = []
        self.contexts: list[str] = []

    def cuPointerGetAttribute(self, out: Any, attribute: int, address: Any) -> int:
        assert attribute == 9
        if not 0 <= address.value - self.memory.address < self.memory.nbytes:
            return 1
        out._obj.value = 3
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        assert (attribute, device.value) == (124, 3)
        out._obj.value = self.supported
        return 0

    def cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> int:
        assert device.value == 3
        self.contexts.append("retained")
        out._obj.value = 7
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        assert context.value == 7
        self.contexts.append("current")
        return 0

    def cuCtxPopCurrent_v2(self, out: Any) -> int:
        assert self.contexts.pop() == "current"
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        assert self.contexts.pop() == "retained"
        return 0

    def cuMemGetHandleForAddressRange(self, out: Any, address: Any, nbytes: Any, kind: int, flags: Any) -> int:
        assert (kind, flags.value) == (1, 0)
        assert self.contexts == ["retained", "current"]
        if self.refusal:
            return self.refusal
        self.ranges.append((address.value - self.memory.address, nbytes.value))
        out._obj.value = os.dup(self.memory.fd)
        return 0

    def count_fds(self) -> int:
        """Count those open on its memory, since other tests' threads may close theirs at any time."""
        gc.collect()
        fds = os.listdir("/proc/self/fd")  # noqa: PTH208 - paths of closed fds cannot be looked at
        return sum(same_file(int(fd), self.memory.fd) for fd in fds)

    def cuGetErrorName(self, code: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_%d" % code
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    monkeypatch.setattr(driver_api, "_driver", lambda: fake)
    yield fake
    assert not fake.contexts
    fake.memory.close()
    gc.collect()  # others count the fds of this process


class CudaTensor:
    """What torch's and CuPy's arrays on a device say, of bytes of the fake driver's memory."""

    def __init__(self, driver: FakeCuda, first: int, last: int) -> None:
        self.bytes = driver.memory.array()[first:last]
        self.streams: list[object] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 3

    def __dlpack__(self, *, stream: object = None, max_version: Any = None) -> object:
        self.streams.append(stream)
        return self.bytes.__dlpack__(max_version=max_version)


class OldCudaTensor(CudaTensor):
    """From before DLPack 1.0."""

    def __dlpack__(self, *, stream: object = None) -> object:  # type: ignore[override]
        self.streams.append(stream)
        return self.bytes.__dlpack__()


class NumbaArray:
    """An array without DLPack."""

    def __init__(self, driver: FakeCuda, **changes: object) -> None:
        at = driver.memory.address + 100
        said = {"data": (at, False), "shape": (5, 8), "typestr": "<f4", "version": 3, "strides": None}
        self.__cuda_array_interface__ = said | changes


def same_file(fd: int, other: int) -> bool:
    """Say whether they are open on one file; a thread may close its own meanwhile."""
    with contextlib.suppress(OSError):
        return os.path.sameopenfile(fd, other)
    return False


@pytest.mark.parametrize("kind", [CudaTensor, OldCudaTensor])
def test_a_tensor_is_exported_by_whole_pages(driver: FakeCuda, kind: Callable[..., CudaTensor]) -> None:
    fds = driver.count_fds()
    tensor = kind(driver, PAGE + 100, 2 * PAGE + 1)
    buffer = memory_of(tensor)
    assert isinstance(buffer, DeviceBuffer)
    assert driver.ranges == [(PAGE, 2 * PAGE)]
    assert driver.count_fds() == fds + 1
    assert tensor.streams[-1] == -1, "no stream is waited for"
    memory = buffer.local_memory(Access.REMOTE_READ)
    assert (memory.addr, memory.nbytes) == (driver.memory.address + PAGE + 100, PAGE - 99)
    assert (memory.fd_offset, memory.is_dmabuf, memory.cuda_device) == (100, True, 3)
    with pytest.raises(UnsupportedError, match="host memory"):
        _ = buffer.array
    buffer.release()
    buffer.release()
    with pytest.raises(ClosedError):
        buffer.local_memory(Access.LOCAL)
    assert driver.count_fds() == fds


def test_the_tensor_is_held(driver: FakeCuda) -> None:
    tensor = CudaTensor(driver, 0, PAGE)
    bytes_ = tensor.bytes
    buffer = memory_of(tensor)
    del tensor
    gc.collect()
    assert any(bytes_ is getattr(one, "bytes", None) for one in gc.get_referrers(bytes_) if isinstance(one, CudaTensor))
    buffer.release()


def test_arrays_of_the_cuda_array_interface(driver: FakeCuda) -> None:
    buffer = memory_of(NumbaArray(driver))
    assert (buffer.address - driver.memory.address, buffer.nbytes, buffer.readonly) == (100, 160, False)
    buffer.release()
    buffer = memory_of(NumbaArray(driver, data=(driver.memory.address, True), strides=(32, 4)))
    assert buffer.readonly
    buffer.release()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strides": (64, 4)}, "C-contiguous"),
        ({"shape": (0, 3)}, "0 bytes"),
        ({"shape": None}, "is malformed"),
        ({"typestr": "nonsense"}, "is malformed"),
        ({"typestr": "V0", "strides": (1, 1)}, "is malformed"),
        ({"data": 5}, "is malformed"),
        ({"data": (5, False)}, "not memory of a CUDA device"),
    ],
)
def test_nonsense_of_the_cuda_array_interface(driver: FakeCuda, changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        memory_of(NumbaArray(driver, **changes))


def test_what_the_driver_refuses(driver: FakeCuda) -> None:
    fds = driver.count_fds()
    driver.refusal = 801
    with pytest.raises(UnsupportedError, match="CUDA_ERROR_801"):
        memory_of(CudaTensor(driver, 0, 8))
    driver.refusal = 2
    with pytest.raises(ProviderError, match="CUDA_ERROR_2") as caught:
        memory_of(CudaTensor(driver, 0, 8))
    assert caught.value.code == 2
    driver.supported = 0
    with pytest.raises(UnsupportedError, match="open kernel modules"):
        memory_of(CudaTensor(driver, 0, 8))
    assert driver.count_fds() == fds


def test_without_a_cuda_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    driver_api._driver.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendUnavailableError, match=r"libcuda\.so\.1") as caught:
        driver_api.export(PAGE, 8)
    assert "NVIDIA" in caught.value.hint


def test_a_dmabuf_of_the_callers(driver: FakeCuda) -> None:
    fds = driver.count_fds()
    theirs = DmaBuf(fd=driver.memory.fd, address=5 * PAGE + 8, nbytes=16, offset=PAGE + 8)
    buffer = memory_of(theirs)
    memory = buffer.local_memory(Access.LOCAL)
    assert memory.fd not in (None, theirs.fd), "its own, or closing one would take the other along"
    assert (memory.addr, memory.fd_offset, memory.cuda_device) == (theirs.address, theirs.offset, None)
    buffer.release()
    assert driver.count_fds() == fds
    os.fstat(theirs.fd)


@pytest.mark.parametrize(
    "changes", [{"fd": -1}, {"nbytes": 0}, {"offset": -8, "address": PAGE - 8}, {"address": 8}, {"offset": 4}]
)
def test_a_dmabuf_that_cannot_be(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        DmaBuf(**{"fd": 0, "address": PAGE, "nbytes": 8, **changes})


def test_a_dmabuf_that_is_closed() -> None:
    allocation = allocate(PAGE)
    closed = DmaBuf(fd=allocation.fd, address=PAGE, nbytes=8)
    allocation.close()
    with pytest.raises(ProviderError, match="dma-buf"):
        memory_of(closed)


# -- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_no_open_backend_reaches_it(driver: FakeCuda) -> None:
    async with TransferEngine(backend="shm") as engine:
        level = driver.count_fds()
        with pytest.raises(UnsupportedError, match=r"needs a backend with device memory, has shm/memfd"):
            await engine.register(CudaTensor(driver, 0, PAGE))
        assert driver.count_fds() == level


@pytest.fixture
def reaching_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the simulated fabric pass for one that reaches devices, beside shm, which does not."""
    opened = SimDriver.open
    monkeypatch.setattr(SimDriver, "open", lambda driver: replace(opened(driver), device_memory=True))


@contextlib.asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[TransferEngine, TransferEngine]]:
    both = {"backend": ("shm", "sim"), "stall_s": 3}
    async with TransferEngine(label="here", **both) as here, TransferEngine(label="there", **both) as there:
        yield here, there


@pytest.mark.anyio
@pytest.mark.usefixtures("reaching_elsewhere")
async def test_it_goes_where_it_is_reached_and_nowhere_else(driver: FakeCuda) -> None:
    async with two_engines() as (here, there):
        device = await here.register(CudaTensor(driver, 0, PAGE))
        plain = await here.register(bytearray(PAGE))
        far_device = await there.register(CudaTensor(driver, PAGE, 2 * PAGE))
        far_plain = await there.register(bytearray(PAGE))
        counter = there.counter()
        onto_plain = RemoteRegion.from_bytes(bytes(far_plain.descriptor(counter)))
        onto_device = RemoteRegion.from_bytes(bytes(far_device.descriptor(counter)))
        assert set(onto_device.descriptor.keys) == {"sim"}

        with pytest.raises(UnsupportedError, match=r"moving region .* over shm .* needs sim, has shm"):
            await here.write(device[:8], onto_plain[:8])
        with pytest.raises(UnsupportedError, match=r"needs sim, which reaches this memory of its owner's, has shm"):
            await here.write(plain[:8], onto_device[:8])
        with pytest.raises(UnsupportedError, match="needs sim, has shm"):
            await here.read(device[:8], onto_plain[:8])
        await here.write(plain[:8], onto_plain[:8])  # nothing else came to harm
        assert counter.value == 1

        forged = replace(onto_device.descriptor, keys={"shm": (b"",)})
        with pytest.raises(StaleRegionError, match="it is device memory, which shm does not reach"):
            await here.write(plain[:8], RemoteRegion(forged)[:8])
        await device.aclose()
        await far_device.aclose()
        again = await here.register(CudaTensor(driver, 0, PAGE))
        await again.aclose()


@pytest.mark.anyio
@pytest.mark.usefixtures("reaching_elsewhere")
async def test_a_prepared_scatter_of_it_over_shm(driver: FakeCuda) -> None:
    async with two_engines() as (here, there):
        device = await here.register(CudaTensor(driver, 0, PAGE))
        plain = await there.register(bytearray(PAGE))
        remote = RemoteRegion.from_bytes(bytes(plain.descriptor()))
        group = await here.group([there.address])
        prepared = await group.prepare_scatter(device, [remote])
        for _ in range(2):
            with pytest.raises(UnsupportedError, match="needs sim, has shm"):
                await prepared.scatter([0], [0], [8])
