"""A fabric for tests: engines in one process, with an adversary between them who is driven by a seed.

.. code-block:: python

    fabric = SimFabric(seed=7, nics=4)
    async with fabric.engine() as a, fabric.engine(nics=1) as b:
        fabric.cut(a, b)                        # packets wait
        transfer = a.submit_write(source[:], target[:])
        ...
        fabric.heal(a, b)

Packets of 8 KiB leave, arrive and are reported in any order; nothing is doubled, and nothing is lost in silence. The
same seed and the same program give the same deliveries, on asyncio and uvloop. trio runs the tasks of a turn in random
order on purpose; under hypothesis, which seeds that too, it repeats as well.
"""

from __future__ import annotations

import enum
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, WeakMethod

from aio_transfer.backends.native._native import Fabric
from aio_transfer.engine.engine import TransferEngine
from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ("Faults", "Packet", "PacketKind", "Route", "SimFabric", "Verdict")

_MAX_NICS: Final = 8
_MAX_SEED: Final = (1 << 64) - 1
_MAX_FAILURES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong by itself, as probabilities; everything is drawn from the fabric's seed.

    Of ``eagain`` and ``late_completions``, 1 is taken for 0.95: nothing would ever move.

    :param eagain: a post finds no slot, and has to be tried again
    :param failed_posts: a piece fails when it is posted
    :param failed_completions: a piece fails when half of its bytes have been written
    :param late_completions: what could be reported now (a completion, a count, a release) is put off
    """

    eagain: float = 0.0
    failed_posts: float = 0.0
    failed_completions: float = 0.0
    late_completions: float = 0.25


class PacketKind(enum.IntEnum):
    """What a packet does."""

    WRITE = 0
    READ = 1
    """Asks for bytes."""
    DATA = 2
    """Brings what was asked for."""
    MESSAGE = 3
    ACK = 4
    DROPPED = 5
    """Stands for a part of a write that fails."""


class Packet(NamedTuple):
    """A packet that is about to leave.

    :param sender_nic: which NIC of the sender it leaves by, from 0
    """

    kind: PacketKind
    sender: TransferEngine
    sender_nic: int
    receiver: TransferEngine
    receiver_nic: int
    nbytes: int


class Verdict(enum.IntEnum):
    """What becomes of a packet."""

    DELIVER = 0
    """It leaves; when it arrives is the adversary's business."""
    HOLD = 1
    """Not now: it will be asked about again."""
    FAIL = 2
    """Its write fails, with an error at the sender and without a count; other kinds are delivered."""


Route: TypeAlias = "Callable[[Packet], Verdict]"
"""Decides about a packet. It must not call engines, since it runs inside one; the fabric's controls it may."""


class SimFabric:
    """Simulated NICs, and all that a test may do to them.

    Its engines have no worker thread: packets move as the event loop turns, so everything stays on one thread and can
    be repeated. They reach only each other.

    :param seed: of every choice; a random one by default, to be printed by a test that fails
    :param nics: how many NICs an engine has, 1 … 8, of unequal speed
    :param reorder: how likely the next packet is any, and not the oldest
    :param mtu: bytes per packet
    :param max_piece: bytes above which a chunk is cut into pieces, which travel and count on their own; 0: none
    :param depth: pieces in flight per NIC and peer; further ones wait
    :param faults: what goes wrong by itself
    :param route: asked about every packet before it leaves; may be exchanged at any time
    :param bug: a deliberate one, to prove that a suite sees it: ``count_before_payload``, ``error_before_stop``,
        ``accept_stale`` or ``skip_fence``
    """

    def __init__(  # noqa: PLR0913 - all optional, all keywords
        self,
        *,
        seed: int | None = None,
        nics: int = 1,
        reorder: float = 1.0,
        mtu: int = 8192,
        max_piece: int = 0,
        depth: int = 256,
        faults: Faults | None = None,
        route: Route | None = None,
        bug: str = "",
    ) -> None:
        """Make the wire, with nobody on it.

        :raises UsageError: a number is out of range
        """
        self.seed = secrets.randbits(32) if seed is None else _within("a seed", seed, 0, _MAX_SEED)
        _within("the number of NICs", nics, 1, _MAX_NICS)
        self._nics = nics
        options = {"reorder": reorder, "mtu": mtu, "max_piece": max_piece, "depth": depth, "bug": bug}
        options |= asdict(faults or Faults())
        self._wire = Fabric(self.seed, {name: str(value) for name, value in options.items()})
        self._nodes: WeakKeyDictionary[TransferEngine, Sequence[int]] = WeakKeyDictionary()
        self._asking = False
        self.route = route

    def engine(self, *, nics: int | None = None, **settings: Any) -> TransferEngine:
        """Make an engine on this fabric, to be entered by the caller.

        :param nics: where it differs from the fabric's
        :param settings: other keywords of :class:`TransferEngine`
        """

        def opened(nodes: Sequence[int]) -> None:  # through this an engine also keeps its fabric
            self._nodes[engine] = nodes

        options = {"fabric": self._wire, "on_open": opened, "nics": self._nics if nics is None else nics}
        engine = TransferEngine(backend="sim", options={"sim": options}, **settings)
        return engine

    # ---------------------------------------------------------------------------------------------------- the choices

    @property
    def route(self) -> Route | None:
        """The hook that is asked about every packet."""
        return self._route

    @route.setter
    def route(self, route: Route | None) -> None:
        if route is not None and not callable(route):
            raise UsageError(f"a route is a function of a packet, not {route!r}")
        self._route = route
        # Weakly: the garbage collector does not see into the wire, and would never find the cycle.
        weak = WeakMethod(self._judge)

        def ask(kind: int, sender: int, receiver: int, nbytes: int) -> int:
            judge = weak()
            return Verdict.DELIVER if judge is None else judge(PacketKind(kind), sender, receiver, nbytes)

        self._wire.set_route(None if route is None else ask)

    def _judge(self, kind: PacketKind, sender: int, receiver: int, nbytes: int) -> int:
        one, other = self._owner_of(sender), self._owner_of(receiver)
        if self._route is None or one is None or other is None:  # exchanged meanwhile, or of an engine that is gone
            return Verdict.DELIVER
        self._asking = True
        try:
            return int(self._route(Packet(kind, *one, *other, nbytes)))
        finally:
            self._asking = False

    def reseed(self, seed: int) -> None:
        """Begin anew: the choices, the digest, and no fault that was commanded. For use while nothing is in flight."""
        self.seed = _within("a seed", seed, 0, _MAX_SEED)
        self._wire.reseed(seed)

    @property
    def in_flight(self) -> int:
        """Packets that have left and have not arrived."""
        return self._wire.totals()["in_flight"]

    @property
    def digest(self) -> int:
        """A hash of what arrived so far, in its order: equal runs have equal ones."""
        return self._wire.totals()["digest"]

    def totals(self) -> dict[str, int]:
        """Return how many packets left, arrived and were dropped; how many posts were refused, and pieces failed."""
        return dict(self._wire.totals())

    # ------------------------------------------------------------------------------------------------------ the faults

    def cut(self, one: TransferEngine, other: TransferEngine) -> None:
        """Hold every packet between two engines, until :meth:`heal`. Liveness goes another way, and sees nothing."""
        self._set_paths(one, other, whole=False)

    def heal(self, one: TransferEngine, other: TransferEngine) -> None:
        """Let packets through again."""
        self._set_paths(one, other, whole=True)

    def stall(self, engine: TransferEngine, nic: int | None = None) -> None:
        """Stop one NIC of an engine, or all: it neither sends nor receives, until :meth:`resume`."""
        self._set(engine, "stalled", 1, nic)

    def resume(self, engine: TransferEngine, nic: int | None = None) -> None:
        """Let it work again."""
        self._set(engine, "stalled", 0, nic)

    def fill_queues(self, engine: TransferEngine) -> None:
        """Let every post find its queue full, until :meth:`drain_queues`."""
        self._set(engine, "full", 1)

    def drain_queues(self, engine: TransferEngine) -> None:
        """Let posts find room again."""
        self._set(engine, "full", 0)

    def hold_completions(self, engine: TransferEngine) -> None:
        """Report no completion, until :meth:`release_completions` reports them in one flood."""
        self._set(engine, "holding", 1)

    def release_completions(self, engine: TransferEngine) -> None:
        """Report what was held."""
        self._set(engine, "holding", 0)

    def fail_posts(self, engine: TransferEngine, count: int = 1, *, nic: int = 0) -> None:
        """Fail the next ``count`` pieces of one NIC when they are posted. An engine's transfers take NICs in turn."""
        self._set(engine, "fail_posts", _within("a number of failures", count, 0, _MAX_FAILURES), nic)

    def fail_completions(self, engine: TransferEngine, count: int = 1, *, nic: int = 0) -> None:
        """Fail the next ``count`` writes of one NIC, after half of their bytes."""
        self._set(engine, "fail_completions", _within("a number of failures", count, 0, _MAX_FAILURES), nic)

    def kill(self, engine: TransferEngine) -> None:
        """End an engine as ``kill -9`` ends a process: its packets vanish and its peers lose it, without a goodbye.

        The engine object can still be closed; nothing else works with it.
        """
        for node in self._nodes_of(engine):
            self._wire.kill(node)
        life = engine._life
        if self._asking:  # from the hook, inside of what may be this very engine
            life.loop.call_soon(life.connections.abort_all)
        else:
            life.connections.abort_all()

    def _set(self, engine: TransferEngine, what: str, value: int, nic: int | None = None) -> None:
        nodes = self._nodes_of(engine)
        if nic is not None:
            nodes = (nodes[_within(f"a NIC of {engine!r}", nic, 0, len(nodes) - 1)],)
        for node in nodes:
            self._wire.set(node, what, value)

    def _set_paths(self, one: TransferEngine, other: TransferEngine, *, whole: bool) -> None:
        for here in self._nodes_of(one):
            for there in self._nodes_of(other):
                self._wire.set_path(here, there, whole)

    def _nodes_of(self, engine: TransferEngine) -> Sequence[int]:
        nodes = self._nodes.get(engine) if isinstance(engine, TransferEngine) else None
        if nodes is None:
            raise UsageError(f"{engine!r} is not open on this fabric")
        return nodes

    def _owner_of(self, node: int) -> tuple[TransferEngine, int] | None:
        for engine, nodes in self._nodes.items():
            if node in nodes:
                return engine, nodes.index(node)
        return None

    def __repr__(self) -> str:
        """Say how to repeat it."""
        return f"<SimFabric seed={self.seed}>"


def _within(what: str, number: int, least: int, most: int) -> int:
    if not isinstance(number, int) or not least <= number <= most:
        raise UsageError(f"{what} is {least} … {most}, not {number!r}")
    return number
