"""Native endpoint: the baseline of a network, its C++ domain driven by one thread, without engine and event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from aio_transfer.bench.workers.bandwidth_steps import MoveBatches, Timings, chunk_indices
from aio_transfer.bench.workers.latency_steps import Iterations
from aio_transfer.bench.workers.worker_state import Empty, WorkerState, cpu_ns

if TYPE_CHECKING:
    from aio_transfer.bench.baselines._baseline import Rail

__all__ = (
    "EndpointAddress",
    "connect_endpoint",
    "open_endpoint",
    "open_spinning_endpoint",
    "ping_native",
    "pong_native",
    "start_progress",
    "stop_progress",
    "write_batches",
)


class EndpointAddress(msgspec.Struct, frozen=True):
    """Address of a native endpoint, and the key of its memory."""

    address: bytes
    key: bytes
    nbytes: int


async def open_endpoint(state: WorkerState, _request: Empty) -> EndpointAddress:
    """Open an endpoint for the memory that the engine uses; it waits as the engine's progress option says."""
    return _open(state, spin=state.start.backend_options[state.start.backend]["progress"] == "spin")


async def open_spinning_endpoint(state: WorkerState, _request: Empty) -> EndpointAddress:
    """Open an endpoint that spins, whatever the engine does."""
    return _open(state, spin=True)


def _open(state: WorkerState, *, spin: bool) -> EndpointAddress:
    from aio_transfer.bench.baselines._baseline import Rail

    backend, memory = state.start.backend, state.memories[0].array
    options = {name: value for name, value in state.start.backend_options[backend].items() if name != "progress"}
    endpoint = state.resources["native endpoint"] = Rail(backend, options, not spin, memory.ctypes.data, memory.nbytes)
    address, key = endpoint.offer()
    return EndpointAddress(address, key, memory.nbytes)


async def connect_endpoint(state: WorkerState, request: EndpointAddress) -> Empty:
    """Connect to the other endpoint; its requests are answered only during progress or a write."""
    _endpoint(state).join(request.address, request.key, request.nbytes)
    return Empty()


async def start_progress(state: WorkerState, _request: Empty) -> Empty:
    """Make progress in a thread until :func:`stop_progress`: software providers need it at the target of writes."""
    _endpoint(state).serve()
    return Empty()


async def stop_progress(state: WorkerState, _request: Empty) -> Empty:
    """Stop the thread, which would disturb the next measurement."""
    _endpoint(state).stop()
    return Empty()


async def write_batches(state: WorkerState, request: MoveBatches) -> Timings:
    """Perform :class:`MoveBatches`: only posts and progress."""
    source_indices, target_indices = chunk_indices(request)
    base = np.uint64(state.memories[0].array.ctypes.data)
    sources = base + (source_indices * request.nbytes).astype(np.uint64)
    offsets = (target_indices * request.nbytes).astype(np.uint64)
    cpu_before = cpu_ns(state.peer_pids)
    elapsed, iterations = _endpoint(state).write(sources, offsets, request.nbytes, request.iterations, request.depth)
    return Timings(elapsed_ns=elapsed, iterations_ns=iterations, cpu_ns=cpu_ns(state.peer_pids) - cpu_before)


async def ping_native(state: WorkerState, request: Iterations) -> Timings:
    """Send words and wait for their answers."""
    cpu_before = cpu_ns(state.peer_pids)
    iterations = _endpoint(state).exchange(request.count, begins=True)
    return Timings(elapsed_ns=sum(iterations), iterations_ns=iterations, cpu_ns=cpu_ns(state.peer_pids) - cpu_before)


async def pong_native(state: WorkerState, request: Iterations) -> Empty:
    """Answer :func:`ping_native`."""
    _endpoint(state).exchange(request.count, begins=False)
    return Empty()


def _endpoint(state: WorkerState) -> Rail:
    endpoint: Rail = state.resources["native endpoint"]
    return endpoint
