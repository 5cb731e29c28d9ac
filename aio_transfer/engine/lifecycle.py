"""Engine life cycle: opens drivers and services in order, and closes them in the reverse order.

The services of an engine, from the bottom up: drivers, event router, connections, counters, count announcements,
region registry, routes, messages, submission, groups. A service is given those below it. What flows upwards (driver
events, control frames, ends of connections) goes through the event router's tables, which are filled here.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import socket
from typing import TYPE_CHECKING, cast

import anyio

from aio_transfer.context import EngineContext
from aio_transfer.control.frames import (
    Abort,
    CountAnnouncement,
    GrantReply,
    GrantRequest,
    GroupJoin,
    GroupLeave,
    Message,
    MessageAck,
    Revoked,
)
from aio_transfer.control.handshake import Credentials
from aio_transfer.control.listener import Listener
from aio_transfer.counters.table import CounterTable
from aio_transfer.driver.backend_registry import open_drivers
from aio_transfer.driver.records import EventKind
from aio_transfer.engine.event_router import EventRouter
from aio_transfer.errors import ClosedError, UsageError
from aio_transfer.groups.membership import MembershipTable
from aio_transfer.observability.stalls import StallWatch
from aio_transfer.peers.connection_manager import ConnectionManager
from aio_transfer.peers.messages import Messenger
from aio_transfer.regions.region_registry import RegionRegistry
from aio_transfer.runtime.background_tasks import BackgroundTasks
from aio_transfer.runtime.event_loop import current_event_loop
from aio_transfer.topology.identity import host_identity, new_incarnation
from aio_transfer.topology.peer_info import PeerInfo
from aio_transfer.transfers.announcements import CountAnnouncements
from aio_transfer.transfers.routes import RouteTable
from aio_transfer.transfers.submission import Submission
from aio_transfer.transfers.validation import OperandCheck

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.driver.records import TransferId
    from aio_transfer.engine.settings import EngineSettings
    from aio_transfer.runtime.event_loop import EventLoop

__all__ = ("EngineLifecycle", "EngineState")


class EngineState(enum.Enum):
    """State of an engine."""

    NEW = "new"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN = EngineState.OPEN
"""A module name of its own: every call of the engine's API reads it."""


class EngineLifecycle:
    """Services of one engine, while it is open.

    :ivar state: new → open → closing → closed
    :ivar context: what groups and scatters work with
    """

    loop: EventLoop
    address: PeerInfo
    context: EngineContext
    router: EventRouter
    connections: ConnectionManager
    counters: CounterTable
    announcements: CountAnnouncements
    registry: RegionRegistry
    operands: OperandCheck
    routes: RouteTable
    messenger: Messenger
    submission: Submission
    membership: MembershipTable
    stall_watch: StallWatch

    def __init__(self, settings: EngineSettings) -> None:
        """Remember the settings; nothing is acquired."""
        self.settings = settings
        self.label = settings.display_label()
        self.state = EngineState.NEW
        self.drivers: dict[str, OpenDriver] = {}
        self._listener: Listener | None = None
        self._tasks: BackgroundTasks | None = None
        self._closed = anyio.Event()

    # -------------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Refuse use before it was entered, after close, and from elsewhere.

        :raises UsageError: it was never entered; or another thread, event loop or process
        :raises ClosedError: it is closing or closed
        """
        if self.state is OPEN:
            self.loop.check("the engine")
            return
        if self.state is EngineState.NEW:
            raise UsageError("the engine was not entered: use 'async with TransferEngine() as engine:'")
        self.check_affinity()
        raise ClosedError("the engine")

    def check_affinity(self) -> None:
        """Refuse use from another thread or event loop, and in a forked child.

        :raises UsageError: naming which
        """
        if self._listener is not None:
            self.loop.check("the engine")

    # ------------------------------------------------------------------------------------------------------- opening

    async def start(self) -> None:
        """Open the backends, bind the listener, and start the background tasks.

        :raises BackendUnavailableError: a requested backend cannot run here
        :raises UsageError: the engine was entered before
        """
        if self.state is not EngineState.NEW:
            raise UsageError("an engine can be entered only once: make another")
        self.loop = current_event_loop()
        self.state = EngineState.OPEN
        try:
            await self._open()
        except BaseException:
            self.state = EngineState.CLOSED
            with anyio.CancelScope(shield=True):
                await self._release()
            raise

    async def _open(self) -> None:
        settings = self.settings
        incarnation = new_incarnation()
        listener = self._listener = await Listener.bind(incarnation, host=settings.host, port=settings.port)
        # After the listener: an address that cannot be bound gives the same error whatever the backend.
        self.address = self._open_drivers(incarnation, listener)
        self._tasks = BackgroundTasks(self.loop, f"aio_transfer.engine({self.label})")
        await self._tasks.start()
        credentials = Credentials(info=self.address, secret=settings.secret)
        self._build_services(credentials, self._tasks)
        self._fill_router()
        self.context = EngineContext(
            loop=self.loop,
            address=self.address,
            connections=self.connections,
            counters=self.counters,
            registry=self.registry,
            routes=self.routes,
            announcements=self.announcements,
            submission=self.submission,
            check=self.check,
            operands=self.operands,
        )
        self.membership = MembershipTable(self.context)
        self.router.on_frame_type(GroupJoin, self.membership.on_join)
        self.router.on_frame_type(GroupLeave, self.membership.on_leave)
        self.router.on_connection_fenced(self.membership.on_fenced)
        for driver in self.drivers.values():
            self.router.watch(driver)
        tasks = self._tasks.group
        self.connections.start(tasks)
        tasks.start_soon(self._serve, listener, credentials)
        tasks.start_soon(self.stall_watch.run, lambda: self.submission.in_flight, self.counters)

    def _open_drivers(self, incarnation: bytes, listener: Listener) -> PeerInfo:
        settings = self.settings
        wildcard = listener.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
        self.drivers = open_drivers(
            settings.backend, settings.options, host=settings.advertise if wildcard else listener.host
        )
        return PeerInfo(
            incarnation=incarnation,
            host=host_identity(),
            label=self.label,
            pid=os.getpid(),
            tcp_host=settings.advertise or (socket.gethostname() if wildcard else listener.host),
            tcp_port=listener.port,
            unix=listener.unix,
            backends={name: driver.capabilities.provider for name, driver in self.drivers.items()},
        )

    def _build_services(self, credentials: Credentials, tasks: BackgroundTasks) -> None:
        """Build the services, each from those below it."""
        settings = self.settings
        transfer_ids = cast("Iterator[TransferId]", itertools.count(1))
        self.router = EventRouter(self.loop, close_engine=self.begin_close)
        self.connections = ConnectionManager(
            self.loop,
            self.router,
            self.drivers,
            credentials,
            liveness_timeout_s=settings.liveness_timeout_s,
            deadline_s=settings.connect_deadline_s,
        )
        self.stall_watch = StallWatch(settings.stall_s, self.connections.label_of, self._pieces_stopped)
        self.counters = CounterTable(self.loop, self.check, self.drivers.values(), on_wait=self.stall_watch.wake)
        self.announcements = CountAnnouncements(self.connections, self.counters)
        self.registry = RegionRegistry(
            self.check, self.check_affinity, self.address, self.drivers, self.connections, stall_s=settings.stall_s
        )
        self.operands = OperandCheck(self.check, self.registry, self.address)
        self.routes = RouteTable(self.connections, self.announcements)
        self.messenger = Messenger(self.connections, transfer_ids.__next__)
        self.submission = Submission(
            loop=self.loop,
            connections=self.connections,
            routes=self.routes,
            announcements=self.announcements,
            tasks=tasks.group,
            transfer_ids=transfer_ids,
            partial_reach=self.registry.partial_reach,
            on_post=self.stall_watch.wake,
            on_other_transfer=self.messenger.on_sent,
        )

    def _fill_router(self) -> None:
        """Register who handles which driver event, control frame and end of a connection."""
        router = self.router
        router.on_event(EventKind.COUNTER, self.counters.on_counter_event)
        router.on_event(EventKind.TRANSFER, self.submission.on_transfer_event)
        router.on_event(EventKind.SENT, lambda number, *_: self.messenger.on_sent(number))
        router.on_event(EventKind.MESSAGE, self._on_message_event)
        router.on_event(EventKind.RELEASED, lambda number, *_: self.registry.on_released(number))
        router.on_event(EventKind.FENCED, lambda number, *_: self.connections.on_fenced_event(number))
        router.on_event(
            EventKind.PEER_FAILED,
            lambda number, _status, _code, text: self.connections.on_failed_event(
                number, text.decode(errors="replace")
            ),
        )
        router.on_frame_type(GrantRequest, self.registry.on_grant_request)
        router.on_frame_type(GrantReply, self.routes.on_grant_reply)
        router.on_frame_type(Revoked, self.routes.on_revoked)
        router.on_frame_type(CountAnnouncement, self.announcements.on_announcement)
        router.on_frame_type(Abort, self.announcements.on_abort)
        router.on_frame_type(Message, self.messenger.on_message_frame)
        router.on_frame_type(MessageAck, self.messenger.on_ack_frame)
        router.on_other_frame(self.connections.reject)
        router.on_connection_down(self.routes.on_down)
        router.on_connection_down(self.messenger.on_down)
        router.on_connection_fenced(self.announcements.on_fenced)

    def _on_message_event(self, number: int, _status: int, _code: int, payload: bytes) -> None:
        connection = self.connections.find(number)
        if connection is not None:
            self.messenger.on_message(connection, payload)

    def _pieces_stopped(self) -> int:
        return sum(driver.driver.statistics().get("writes", 0) for driver in self.drivers.values())

    async def _serve(self, listener: Listener, credentials: Credentials) -> None:
        await listener.serve(self.connections.on_session, credentials, decide=self.connections.decide)

    # ------------------------------------------------------------------------------------------------------- closing

    async def aclose(self) -> None:
        """Close the engine and wait for it; see :meth:`TransferEngine.aclose`."""
        if self.state is EngineState.NEW:
            self.state = EngineState.CLOSED
            return
        self.check_affinity()
        self.begin_close()
        cancelled: BaseException | None = None
        while not self._closed.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await self._closed.wait()
            except anyio.get_cancelled_exc_class() as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def begin_close(self) -> None:
        """Start to close in a task of its own. Idempotent."""
        if self.state is EngineState.OPEN:
            self.state = EngineState.CLOSING
            # In a task of its own: a native Task.cancel passes through anyio's shields, and would leave it half closed.
            self.loop.spawn(self._close, f"aio_transfer.close({self.label})")

    async def _close(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await self._disconnect_and_release()
        finally:
            self.state = EngineState.CLOSED
            self.submission.abort_all("the engine was closed")
            self.registry.close()
            self.messenger.close()
            self._closed.set()

    async def _disconnect_and_release(self) -> None:
        # A loop that is shut down around us cancels each of these awaits once; the next one still runs.
        cancelled = anyio.get_cancelled_exc_class()
        with contextlib.suppress(cancelled):
            await self.submission.drain(self.settings.grace_s)
        self.membership.close()
        with contextlib.suppress(cancelled):
            await self.connections.aclose(self.settings.grace_s)
        self.counters.close()
        for driver in self.drivers.values():
            self.router.unwatch(driver)
        with contextlib.suppress(cancelled):
            await self._release()

    async def _release(self) -> None:
        """Release what was acquired, however far opening came."""
        if self._listener is not None:
            await self._listener.aclose()
        for driver in self.drivers.values():
            driver.driver.close()  # from here nothing of ours moves, and no peer's key is valid
        if self._tasks is not None:
            await self._tasks.stop()
