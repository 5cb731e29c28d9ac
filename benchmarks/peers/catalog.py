"""Libraries to compare with: what to install, and how each moves bytes on each path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

PATHS: Final = ("shm", "foreign", "tcp")
NUMPY: Final = "numpy==2.4.6"


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One library, used in one way.

    :param adapter: ``module:class`` in ``adapters``
    :param requirements: pinned, the library itself first
    :param with_dependencies: install the dependencies of the requirements too
    :param paths: paths that it supports
    :param options: for the adapter
    :param environment: environment variables, by path
    :param polls: it spins while it waits, so that its round trips are also compared with ours in spin mode
    :param mpi: both processes are started by ``mpiexec``
    """

    name: str
    adapter: str
    requirements: Sequence[str] = ()
    with_dependencies: bool = True
    paths: Sequence[str] = PATHS
    options: Mapping[str, str] = {}
    environment: Mapping[str, Mapping[str, str]] = {}
    polls: bool = False
    mpi: bool = False

    @property
    def version(self) -> str:
        """Version of the library; empty for Python's own modules."""
        return self.requirements[0].partition("==")[2] if self.requirements else ""


def _nixl(name: str, backend: str, *, progress_thread: bool, paths: Sequence[str] = PATHS) -> Peer:
    return Peer(
        name=name,
        adapter="nixl:Nixl",
        requirements=["nixl-cu12==1.5.1", NUMPY],
        with_dependencies=False,  # it requires torch, and works without
        paths=paths,
        options={"backend": backend, "progress_thread": "yes" if progress_thread else "no"},
        environment={"tcp": {"UCX_TLS": "tcp"}},
        polls=True,
    )


def _ucxx(name: str, progress_mode: str) -> Peer:
    return Peer(
        name=name,
        adapter="ucxx:Ucxx",
        requirements=["ucxx-cu12==0.52.0", "libucx-cu12==1.21.0", NUMPY],
        paths=["shm", "tcp"],
        options={"progress_mode": progress_mode},
        environment={"tcp": {"UCX_TLS": "tcp"}},
    )


def _mpi(name: str, window: str, paths: Sequence[str]) -> Peer:
    return Peer(
        name=name,
        adapter="mpi:Mpi",
        requirements=["mpi4py==4.1.2", "mpich==5.0.2", NUMPY],
        paths=paths,
        options={"window": window},
        environment={"tcp": {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}},
        polls=True,
        mpi=True,
    )


PEERS: Final = (
    _nixl("nixl", "UCX", progress_thread=False),
    _nixl("nixl-thread", "UCX", progress_thread=True, paths=["shm", "tcp"]),
    _nixl("nixl-libfabric", "LIBFABRIC", progress_thread=False, paths=["tcp"]),
    Peer(
        name="mooncake",
        adapter="mooncake:Mooncake",
        requirements=["mooncake-transfer-engine-non-cuda==0.3.13.post1", NUMPY],
        with_dependencies=False,  # its other requirements belong to its store
        paths=["tcp"],
        environment={"tcp": {"GLOG_minloglevel": "2"}},
        polls=True,
    ),
    _ucxx("ucxx", "thread"),
    _ucxx("ucxx-blocking", "blocking"),
    _mpi("mpich", "allocated", PATHS),
    _mpi("mpich-shared", "shared", ["shm"]),
    Peer(name="pyzmq", adapter="pyzmq:PyZmq", requirements=["pyzmq==27.3.0", NUMPY], paths=["shm", "tcp"]),
    Peer(name="shared_memory", adapter="sockets:SharedMemoryAdapter", paths=["shm"]),
    Peer(name="asyncio", adapter="sockets:SocketAdapter", paths=["shm", "tcp"]),
)


def ours(path: str, progress: str = "adaptive") -> Peer:
    """Return aio-transfer on a path: the same workloads through the same loop as the others."""
    backend = {"backend": "tcp" if path == "tcp" else "shm"}
    return Peer(name="aio-transfer", adapter="ours:Ours", options=backend | {"progress": progress})


def select(names: Sequence[str]) -> Sequence[Peer]:
    """Return the peers with these names; all if no name is given.

    :raises ValueError: there is no such peer
    """
    unknown = set(names) - {peer.name for peer in PEERS}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: none of {', '.join(peer.name for peer in PEERS)}")
    return [peer for peer in PEERS if not names or peer.name in names]
