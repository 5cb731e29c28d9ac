"""Simulated fabric for tests: engines in one process, connected by NICs that a seeded adversary controls.

.. code-block:: python

    fabric = SimFabric(seed=7, nics=4)
    async with fabric.engine() as a, fabric.engine(nics=1) as b:
        fabric.cut(a, b)                        # packets wait
        transfer = a.submit_write(source[:], target[:])
        ...
        fabric.heal(a, b)

Packets of 8 KiB are sent, delivered and reported in any order; none is duplicated, and none is lost silently. The same
seed and the same program give the same deliveries on asyncio and uvloop. trio runs the tasks of a turn in random order
on purpose; under hypothesis, which seeds that order too, deliveries repeat on trio as well.
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

__all__ = ("Faults", "Packet", "PacketHook", "PacketKind", "SimFabric", "Verdict")

_MAX_NICS: Final = 8
_MAX_SEED: Final = (1 << 64) - 1
_MAX_FAILURES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities of random faults, which are drawn from the fabric's seed.

    A value of 1 for ``eagain`` or ``late_completions`` is taken as 0.95, since nothing would ever move.

    :param eagain: a post finds no slot, and has to be tried again
    :param failed_posts: a piece fails when it is posted
    :param failed_completions: a piece fails when half of its bytes have been written
    :param late_completions: an event that could be reported now (a completion, a count, a release) is reported later
    """

    eagain: float = 0.0
    failed_posts: float = 0.0
    failed_completions: float = 0.0
    late_completions: float = 0.25


class PacketKind(enum.IntEnum):
    """Kind of a packet."""

    WRITE = 0
    READ = 1
    """Requests bytes."""
    DATA = 2
    """Carries the requested bytes."""
    MESSAGE = 3
    ACK = 4
    DROPPED = 5
    """Takes the place of a part of a write that fails."""


class Packet(NamedTuple):
    """A packet that is about to be sent.

    :param sender_nic: index of the NIC that sends it, from 0
    """

    kind: PacketKind
    sender: TransferEngine
    sender_nic: int
    receiver: TransferEngine
    receiver_nic: int
    nbytes: int


class Verdict(enum.IntEnum):
    """Decision of a packet hook."""

    DELIVER = 0
    """Send it; the adversary chooses when it arrives."""
    HOLD = 1
    """Do not send it now; the hook is called again for it."""
    FAIL = 2
    """Fail its write with an error at the sender and without a count; packets of other kinds are delivered."""


PacketHook: TypeAlias = "Callable[[Packet], Verdict]"
"""Decides about a packet. It runs inside an engine and must not call one; it may call the fabric's controls."""


class SimFabric:
    """Simulated NICs, with controls for tests.

    Its engines have no worker thread: packets move as the event loop turns, so that everything runs on one thread and
    is repeatable. They reach only each other.

    :param seed: seed of every choice; random by default, so a failing test should print it
    :param nics: how many NICs an engine has, 1 … 8, of unequal speed
    :param reorder: probability that the next packet is a random one instead of the oldest
    :param mtu: bytes per packet
    :param max_piece: bytes above which a chunk is split into pieces, each sent and counted on its own; 0: never
    :param depth: pieces in flight per NIC and peer; further ones wait
    :param faults: probabilities of random faults
    :param packet_hook: called for every packet before it is sent; may be replaced at any time
    :param bug: a deliberate bug, to prove that a test suite detects it: ``count_before_payload``,
        ``error_before_stop``, ``accept_stale`` or ``skip_fence``
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
        packet_hook: PacketHook | None = None,
        bug: str = "",
    ) -> None:
        """Create a fabric without engines.

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
        self.packet_hook = packet_hook

    def engine(self, *, nics: int | None = None, **settings: Any) -> TransferEngine:
        """Create an engine on this fabric; the caller enters it.

        :param nics: number of NICs; by default the fabric's
        :param settings: other keywords of :class:`TransferEngine`
        """

        def opened(nodes: Sequence[int]) -> None:  # this closure also keeps the fabric alive as long as the engine
            self._nodes[engine] = nodes

        options = {"fabric": self._wire, "on_open": opened, "nics": self._nics if nics is None else nics}
        engine = TransferEngine(backend="sim", options={"sim": options}, **settings)
        return engine

    # ---------------------------------------------------------------------------------------------------- packet hook

    @property
    def packet_hook(self) -> PacketHook | None:
        """The hook that is called for every packet."""
        return self._packet_hook

    @packet_hook.setter
    def packet_hook(self, packet_hook: PacketHook | None) -> None:
        if packet_hook is not None and not callable(packet_hook):
            raise UsageError(f"a packet hook is a function of a packet, not {packet_hook!r}")
        self._packet_hook = packet_hook
        # A weak reference: the garbage collector does not see into the native fabric, and would never find the cycle.
        weak = WeakMethod(self._judge)

        def ask(kind: int, sender: int, receiver: int, nbytes: int) -> int:
            judge = weak()
            return Verdict.DELIVER if judge is None else judge(PacketKind(kind), sender, receiver, nbytes)

        self._wire.set_route(None if packet_hook is None else ask)

    def _judge(self, kind: PacketKind, sender: int, receiver: int, nbytes: int) -> int:
        one, other = self._owner_of(sender), self._owner_of(receiver)
        if (
            self._packet_hook is None or one is None or other is None
        ):  # the hook was replaced meanwhile, or an engine is gone
            return Verdict.DELIVER
        self._asking = True
        try:
            return int(self._packet_hook(Packet(kind, *one, *other, nbytes)))
        finally:
            self._asking = False

    def reseed(self, seed: int) -> None:
        """Restart the random choices and the digest, and undo commanded faults; only while nothing is in flight."""
        self.seed = _within("a seed", seed, 0, _MAX_SEED)
        self._wire.reseed(seed)

    @property
    def in_flight(self) -> int:
        """Number of packets that were sent and have not arrived."""
        return self._wire.totals()["in_flight"]

    @property
    def digest(self) -> int:
        """A hash of the packets that have arrived, in their order: equal runs have equal digests."""
        return self._wire.totals()["digest"]

    def totals(self) -> dict[str, int]:
        """Return how many packets were sent, delivered and dropped, how many posts were refused, and pieces failed."""
        return dict(self._wire.totals())

    # ------------------------------------------------------------------------------------------------------ the faults

    def cut(self, one: TransferEngine, other: TransferEngine) -> None:
        """Hold every packet between two engines until :meth:`heal`. Heartbeats take another path, and go on."""
        self._set_paths(one, other, whole=False)

    def heal(self, one: TransferEngine, other: TransferEngine) -> None:
        """Let packets between two engines through again."""
        self._set_paths(one, other, whole=True)

    def stall(self, engine: TransferEngine, nic: int | None = None) -> None:
        """Stop one NIC of an engine, or all: a stopped NIC neither sends nor receives until :meth:`resume`."""
        self._set(engine, "stalled", 1, nic)

    def resume(self, engine: TransferEngine, nic: int | None = None) -> None:
        """Restart one NIC of an engine, or all."""
        self._set(engine, "stalled", 0, nic)

    def fill_queues(self, engine: TransferEngine) -> None:
        """Make every post find its queue full until :meth:`drain_queues`."""
        self._set(engine, "full", 1)

    def drain_queues(self, engine: TransferEngine) -> None:
        """Let posts find room again."""
        self._set(engine, "full", 0)

    def hold_completions(self, engine: TransferEngine) -> None:
        """Hold back every completion until :meth:`release_completions` reports all of them at once."""
        self._set(engine, "holding", 1)

    def release_completions(self, engine: TransferEngine) -> None:
        """Report the completions that were held back."""
        self._set(engine, "holding", 0)

    def fail_posts(self, engine: TransferEngine, count: int = 1, *, nic: int = 0) -> None:
        """Fail the next ``count`` pieces of one NIC when they are posted. Transfers use the NICs in turn."""
        self._set(engine, "fail_posts", _within("a number of failures", count, 0, _MAX_FAILURES), nic)

    def fail_completions(self, engine: TransferEngine, count: int = 1, *, nic: int = 0) -> None:
        """Fail the next ``count`` writes of one NIC, after half of their bytes."""
        self._set(engine, "fail_completions", _within("a number of failures", count, 0, _MAX_FAILURES), nic)

    def kill(self, engine: TransferEngine) -> None:
        """End an engine as ``kill -9`` ends a process: its packets vanish, and its peers lose it without a goodbye.

        The engine object can still be closed; nothing else works with it.
        """
        for node in self._nodes_of(engine):
            self._wire.kill(node)
        life = engine._life
        if self._asking:  # called from the hook, maybe inside this engine
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
        """Return the seed, which repeats the run."""
        return f"<SimFabric seed={self.seed}>"


def _within(what: str, number: int, least: int, most: int) -> int:
    if not isinstance(number, int) or not least <= number <= most:
        raise UsageError(f"{what} is {least} … {most}, not {number!r}")
    return number
