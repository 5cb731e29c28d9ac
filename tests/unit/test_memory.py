"""Where the bytes of an object are, and that they stay there."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.driver.records import Access
from aio_transfer.errors import ClosedError, ProviderError, UnsupportedError, UsageError
from aio_transfer.memory.allocation import MAX_NBYTES, allocate, find_allocation
from aio_transfer.memory.buffers import memory_of


def open_fds() -> set[str]:
    """Return the open memfds of ours."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            if "memfd:aio-transfer" in str(path.readlink()):
                found.add(path.name)
    return found


def left_behind() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}  # noqa: S108


def maps_of(address: int) -> bool:
    return any(int(line.split("-")[0], 16) == address for line in Path("/proc/self/maps").read_text().splitlines())


# -- allocate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, 4097, 1 << 20])
def test_allocation_is_zeroed_aligned_and_shared(nbytes: int) -> None:
    allocation = allocate(nbytes)
    view = allocation.array()
    assert (view.nbytes, allocation.nbytes) == (nbytes, nbytes)
    assert allocation.address % mmap.PAGESIZE == 0
    assert not view.any()
    view[-1] = 42
    assert os.pread(allocation.fd, 1, nbytes - 1) == b"\x2a"  # the file is the memory
    assert os.fstat(allocation.fd).st_size == nbytes
    allocation.close()


@pytest.mark.parametrize("nbytes", [0, -1, MAX_NBYTES + 1])
def test_allocation_of_impossible_size_is_refused(nbytes: int) -> None:
    with pytest.raises(UsageError, match=r"cannot allocate"):
        allocate(nbytes)


def test_allocation_is_sealed_against_resizing_and_more_seals() -> None:
    allocation = allocate(4096)
    for nbytes in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(allocation.fd, nbytes)
    with pytest.raises(PermissionError):
        fcntl.fcntl(allocation.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert not os.get_inheritable(allocation.fd)


def test_close_is_idempotent_and_keeps_live_views_mapped() -> None:
    gc.collect()  # what other tests left in cycles is closed now, not meanwhile
    before = open_fds()
    allocation = allocate(1 << 20)
    view, address, fd = allocation.array((256, 1024), "f4"), allocation.address, allocation.fd
    allocation.close()
    allocation.close()
    assert allocation.closed
    with pytest.raises(ClosedError):
        _ = allocation.fd
    with pytest.raises(ClosedError):
        allocation.array()
    assert find_allocation(address, 1) is None
    assert str(fd) not in open_fds()
    view[:] = 1.5
    assert view.sum() == 1.5 * 256 * 1024
    part = view[3:5]
    del allocation, view
    gc.collect()
    assert part.sum() == 1.5 * 2048  # a view of a view holds it too
    del part
    gc.collect()
    assert not maps_of(address)
    assert open_fds() == before


def test_last_view_closes_what_nobody_closed() -> None:
    before = open_fds()
    view = allocate(4096).array()
    address = int(view.ctypes.data)
    assert find_allocation(address, 4096) is not None
    del view
    gc.collect()
    assert find_allocation(address, 4096) is None
    assert open_fds() == before


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 1000), "u1"), ((-1, 10), "u1"), (0, "u1"), (300, "f8"), (4, object), ((2**40, 2**40), "u1"), (4, "V0")],
)
def test_array_that_does_not_fit_is_refused(shape: Any, dtype: Any) -> None:
    with pytest.raises(UsageError):
        allocate(2000).array(shape, dtype)


@pytest.mark.parametrize("shape", [10, (2, 5), [5, 2], (), np.int64(3)])
def test_array_takes_shapes_as_numpy_does(shape: Any) -> None:
    assert allocate(4096).array(shape, "u2").shape == np.empty(shape).shape


def test_running_out_of_descriptors_is_a_typed_error() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ProviderError, match="ulimit -n") as caught:
            allocate(4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.code == errno.EMFILE
    assert caught.value.nbytes == 4096


def test_running_out_of_address_space_is_a_typed_error_and_leaks_nothing() -> None:
    before = open_fds()
    with pytest.raises(ProviderError, match="allocation of 4611686018427387904 B") as caught:
        allocate(1 << 62)
    assert caught.value.code in {errno.ENOMEM, errno.EFBIG}
    assert open_fds() == before


def test_huge_pages_are_there_or_refused_but_never_replaced() -> None:
    try:
        allocation = allocate(5000, huge_pages=True)
    except ProviderError as error:
        assert error.code in {errno.ENOMEM, errno.EINVAL, errno.EPERM}
        return
    assert allocation.nbytes == 5000
    assert os.fstat(allocation.fd).st_size % (1 << 20) == 0
    assert allocation.array().nbytes == 5000


def test_nothing_is_left_after_kill() -> None:
    before = left_behind()
    code = (
        "import os, signal\nfrom aio_transfer.memory.allocation import allocate\n"
        "view = allocate(1 << 20).array(); view[:] = 1\nprint(os.listdir('/dev/shm'), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert left_behind() <= before
    assert "aio" not in done.stdout


# -- find_allocation --------------------------------------------------------------------------------------------------


def test_slices_of_an_allocation_are_found_with_their_offset() -> None:
    others = [allocate(8192) for _ in range(5)]
    allocation = allocate(10_000)
    buffer = memory_of(allocation.array((100, 100))[7:9])
    assert buffer.allocation is not None
    memory = buffer.local_memory(Access.REMOTE_READ)
    assert (memory.fd, memory.fd_offset, memory.nbytes) == (allocation.fd, 700, 200)
    assert memory.addr == allocation.address + 700
    for other in others:
        other.close()


@given(offset=st.integers(-3, 4099), nbytes=st.integers(1, 4100))
def test_only_ranges_entirely_inside_are_found(offset: int, nbytes: int) -> None:
    allocation = allocate(4096)
    found = find_allocation(allocation.address + offset, nbytes)
    inside = offset >= 0 and offset + nbytes <= 4096
    assert (found is not None and found.address == allocation.address) == inside
    allocation.close()


def test_foreign_memory_has_no_fd() -> None:
    memory = memory_of(np.zeros(10)).local_memory(Access.LOCAL)
    assert (memory.fd, memory.fd_offset, memory.nbytes) == (None, 0, 80)


# -- memory_of --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "f8", "c16", "?", "M8[ns]", "S3", "U2", [("a", "u1"), ("b", "f8")], ">i4"])
def test_arrays_of_every_plain_dtype(dtype: Any) -> None:
    source = np.zeros((3, 4), dtype)
    buffer = memory_of(source)
    assert (buffer.address, buffer.nbytes) == (source.ctypes.data, source.nbytes)
    assert not buffer.readonly
    buffer.array[:] = 255
    assert source.tobytes() == b"\xff" * source.nbytes


@pytest.mark.parametrize(
    "source",
    [
        bytearray(b"12345678"),
        memoryview(bytearray(b"12345678")),
        memoryview(bytearray(b"0123456789"))[1:9],
        memoryview(bytearray(8)).cast("i"),
        memoryview(bytearray(8)).cast("B", (2, 4)),
        array.array("d", [1.0]),
        mmap.mmap(-1, 8),
        (ctypes.c_uint32 * 2)(),
        np.zeros(1, "f8").view(np.recarray),
        np.zeros((), "f8"),
        np.zeros((1, 8, 1), "u1")[:, ::1],
    ],
    ids=lambda source: type(source).__name__,
)
def test_writable_memory_of_eight_bytes(source: Any) -> None:
    buffer = memory_of(source)
    assert buffer.nbytes == 8
    assert not buffer.readonly
    buffer.array[:] = list(b"ABCDEFGH")
    assert memoryview(source).tobytes() == b"ABCDEFGH"
    assert buffer.owner is source


def test_readonly_memory_is_known_as_such() -> None:
    frozen = np.zeros(4)
    frozen.flags.writeable = False
    for source in (b"1234", frozen, memoryview(b"1234"), memoryview(bytearray(4)).toreadonly()):
        buffer = memory_of(source)
        assert buffer.readonly
        with pytest.raises(ValueError, match="read-only"):
            buffer.array[0] = 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((4, 4))[:, :2], r"C-contiguous.*strides \(32, 8\)"),
        (np.zeros((4, 4)).T[1:], r"C-contiguous.*strides"),
        (np.broadcast_to(np.zeros(1), 5), r"C-contiguous.*strides \(0,\)"),
        (np.zeros(8)[::-1], r"strides \(-8,\)"),
        (memoryview(bytearray(8))[::2], r"C-contiguous.*strides \(2,\)"),
        (np.zeros(3, object), "references"),
        (np.zeros(3, [("a", object)]), "references"),
        ((ctypes.py_object * 2)(), "references"),
        (b"", "0 bytes"),
        (np.zeros((0, 4)), "0 bytes"),
        (np.zeros(4, "V0"), "0 bytes"),
        ("text", "has no memory"),
        (12, "has no memory"),
        ([1, 2], "has no memory"),
        (None, "has no memory"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_words(source: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        memory_of(source)


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 2 brought variable-width strings")
def test_arrays_of_variable_width_strings_are_refused() -> None:
    with pytest.raises(UsageError, match="references"):
        memory_of(np.zeros(3, np.dtypes.StringDType()))


def test_objects_cannot_move_until_released() -> None:
    growing, mapping = bytearray(8), mmap.mmap(-1, 4096)
    held = [memory_of(growing), memory_of(mapping)]
    with pytest.raises(BufferError):
        growing.append(1)
    with pytest.raises(BufferError):
        mapping.close()
    for buffer in held:
        buffer.release()
        buffer.release()
        assert buffer.owner is None
        with pytest.raises(ClosedError):
            _ = buffer.array
        with pytest.raises(ClosedError):
            buffer.local_memory(Access.LOCAL)
    growing.append(1)
    mapping.close()


def test_buffer_keeps_its_object_alive() -> None:
    buffer = memory_of(bytearray(b"x" * 100_000))
    gc.collect()
    assert buffer.array.tobytes() == b"x" * 100_000


def test_import_needs_no_tensor_library() -> None:
    names = ("memory.buffers", "memory.dlpack", "regions.region", "transfers.planner", "groups.prepared_scatter")
    code = f"import sys\n{''.join(f'import aio_transfer.{name}{chr(10)}' for name in names)}"
    code += "print({'torch', 'cupy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == "set()"


# -- DLPack -----------------------------------------------------------------------------------------------------------


class Tensor:
    """An array that speaks nothing but DLPack, as torch's do."""

    def __init__(self, source: Any, *, device: tuple[int, int] = (1, 0), versioned: bool = True) -> None:
        self.source = source
        self.device = device
        self.versioned = versioned

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: Any) -> object:
        if not self.versioned and options:
            raise TypeError("unexpected keyword argument 'max_version'")
        return self.source.__dlpack__(**options)


@pytest.mark.parametrize("versioned", [True, False])
def test_dlpack_memory_is_held_until_released(versioned: bool) -> None:
    source = np.arange(24, dtype="f4").reshape(2, 3, 4)
    references = sys.getrefcount(source)
    buffer = memory_of(Tensor(source, versioned=versioned))
    assert (buffer.address, buffer.nbytes, buffer.readonly) == (source.ctypes.data, 96, False)
    buffer.array[:4] = np.frombuffer(np.float32(7).tobytes(), np.uint8)
    assert source[0, 0, 0] == 7
    assert sys.getrefcount(source) > references
    view = buffer.array
    buffer.release()
    assert view.tobytes() == source.tobytes()  # whoever still looks keeps it
    del view
    assert sys.getrefcount(source) == references


def test_dlpack_finds_allocations_and_read_only() -> None:
    allocation = allocate(4096)
    part = allocation.array()[100:200]
    buffer = memory_of(Tensor(part))
    assert buffer.local_memory(Access.LOCAL).fd_offset == 100
    part.flags.writeable = False
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # before that NumPy cannot say read-only, and refuses
        assert memory_of(Tensor(part)).readonly


@pytest.mark.parametrize("device", [(10, 3), (13, 0), (77, 0)])
def test_device_memory_is_unsupported(device: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError, match=f"device {device[1]} .DLPack type {device[0]}"):
        memory_of(Tensor(np.zeros(4), device=device))


def test_pinned_host_memory_is_host_memory() -> None:
    assert memory_of(Tensor(np.zeros(4), device=(3, 0))).nbytes == 32


@pytest.mark.parametrize("source", [np.zeros((4, 4)).T, np.zeros(8)[::2], np.zeros((4, 4))[:, 1:]])
def test_scattered_tensors_are_refused(source: Any) -> None:
    with pytest.raises(UsageError, match=r"C-contiguous.*strides"):
        memory_of(Tensor(source))


def test_a_tensor_that_refuses_says_why() -> None:
    class Grad(Tensor):
        def __dlpack__(self, **_: Any) -> object:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(UsageError, match=r"Grad does not export.*detach\(\)") as caught:
        memory_of(Grad(np.zeros(1)))
    assert isinstance(caught.value.__cause__, BufferError)


@pytest.mark.parametrize("capsule", [None, 5, "capsule"])
def test_what_is_not_a_capsule_is_refused(capsule: object) -> None:
    class Broken(Tensor):
        def __dlpack__(self, **_: Any) -> object:
            return capsule

    with pytest.raises(UsageError, match="not a fresh DLPack capsule"):
        memory_of(Broken(np.zeros(1)))


def test_empty_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="0 bytes"):
        memory_of(Tensor(np.zeros((0, 3))))


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64):
        tensor = torch.zeros(4, 8, dtype=dtype)
        buffer = memory_of(tensor)
        assert (buffer.address, buffer.nbytes) == (tensor.data_ptr(), tensor.nbytes)
    part = torch.zeros(10, 10)[2:4]
    assert memory_of(part).address == part.data_ptr()
    for wrong in (
        part.T,
        torch.zeros(3, requires_grad=True),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
    ):
        with pytest.raises(UsageError):
            memory_of(wrong)
    allocation = allocate(400)
    shared = torch.from_numpy(allocation.array(100, "f4"))[50:]
    assert memory_of(shared).local_memory(Access.LOCAL).fd_offset == 200
