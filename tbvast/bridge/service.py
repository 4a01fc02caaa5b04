"""
The bridge: from a bus's indicators to an engine, and from its matches back.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zmq
from twisted.application.internet import TimerService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bridge.bus_cursor import StoreCursor
from tbvast.bridge.commands import CommandSink, StdoutSink, TransformContext, parse_command
from tbvast.bridge.engine_session import EngineSession, Search
from tbvast.bridge.outbox import Outbox
from tbvast.bridge.sighting_factory import SightingMaker, SinkHanding
from tbvast.bridge.store.indicators import Changes
from tbvast.bridge.store.worker import NO, YES, Keeper
from tbvast.bus_client.subscription import BusSubscription, Wish
from tbvast.engines.binaries import find_client
from tbvast.engines.tenzir.embedded_node import EmbeddedNode
from tbvast.engines.tenzir.engine import TenzirEngine
from tbvast.engines.threads import EngineThreads
from tbvast.engines.vast import VastEngine
from tbvast.errors import StoreFailed, shown
from tbvast.interfaces import IEngine
from tbvast.protocol.manage import Position
from tbvast.protocol.replay import FRAME_BYTES
from tbvast.service.clock import boot, calendar
from tbvast.service.flusher import Deliver
from tbvast.service.process import SequentialService, ServiceProcess
from tbvast.settings import BridgeSettings, HostPort
from tbvast.stix.sightings import MatchType
from tbvast.storage.worker_client import Worker
from tbvast.telemetry.known_fields import with_mappings
from tbvast.values import Match
from tbvast.zeromq.curve import load_client_options
from tbvast.zeromq.sockets import Factory

STORE_NAME = "bridge.db"

INTEL_TOPIC = "stix2/indicator"

VALIDITY_INTERVAL = 1.0
"""
Seconds between looks for indicators that are no longer, or have become, valid.
"""

FORGET_INTERVAL = 3600.0
"""
Seconds between looks for sightings that were sent long ago.
"""

NAMED = 100
"""
The most indicators that one line of the log names.
"""

OLD_COMMAND = "vast"
OLD_ADDRESS = HostPort("127.0.0.1", 42000)
"""
What the engine of old is called, and where its node listens by default.
"""

_PROBE = 1.0


class Bridge(SequentialService):
    """
    One bridge, for as long as the service runs.
    """

    _log = Logger()

    def __init__(self, reactor: Any, settings: BridgeSettings, process: ServiceProcess) -> None:
        """
        @param process: Whose state directory is used, and which is ended if the
            bridge cannot go on.
        @raise EngineMissing: If there is no engine's command.
        @raise KeyUnusable: If a key file cannot be used.
        """
        super().__init__()
        self._reactor = reactor
        self._settings = settings
        self._process = process
        self._state = Path(process.state.path)
        self._old = settings.engine == "vast"
        self._binary = find_client(settings.vast_binary or (OLD_COMMAND if self._old else None))
        self._embedded = False
        self._keys = load_client_options(settings.curve_key, settings.server_key)
        self._counts: dict[str, Any] = {}

    def startService(self) -> None:
        """
        @raise StoreFailed: If the store cannot be used.
        @raise StartupRefused: If the place for an embedded node cannot.
        """
        self._keeper = Worker(
            self._reactor,
            "the store's keeper",
            "tbvast.bridge.store.worker",
            [str(self._state / STORE_NAME), YES if self._settings.retro_match else NO],
            StoreFailed,
            self._process.fail,
        )
        position: Position | None = self._keeper.start(Position | None)
        self._keeper.ask(Keeper.renewed).addCallbacks(self._cb_renewed, self._eb_renewed)
        self._factory = Factory(self._reactor)
        self._compose(position)
        try:
            super().startService()
        except Exception:
            self._factory.shutdown()
            raise

    def _cb_renewed(self, said: str) -> None:
        if said:
            self._log.critical("{said}", said=said)

    def _eb_renewed(self, failure: Failure) -> None:
        failure.trap(StoreFailed)  # it has ended, and that is told

    def _compose(self, position: Position | None) -> None:
        """
        @param position: How far the bus's journal has been applied.
        """
        settings, reactor, ask = self._settings, self._reactor, self._keeper.ask
        address = self._engine_address()
        self._driven = self._engine(address)
        engine = EngineThreads(reactor, self._driven)
        engine.setServiceParent(self)
        self._maker = SightingMaker(calendar, ask, settings.engine, self._transform())
        self._outbox = Outbox(reactor, calendar, ask, self._deliver())
        self._outbox.setServiceParent(self)
        self._session = EngineSession(
            reactor,
            calendar,
            HostnameEndpoint(reactor, address.host, address.port),
            engine.client,
            ask,
            self._sight,
            settings.live_match,
            Search(
                settings.retro_match_max_events,
                settings.retro_match_timeout,
                settings.retro_match_days,
            )
            if settings.retro_match
            else None,
            lambda e: self._process.fail(str(e)),
            boot(),
        )
        self._session.setServiceParent(self)
        for interval, call in (
            (VALIDITY_INTERVAL, self._expire),
            (VALIDITY_INTERVAL, self._begin),
            (FORGET_INTERVAL, self._forget),
            (settings.heartbeat, self._count),
        ):
            timer = TimerService(interval, call)
            timer.clock = reactor
            timer.setServiceParent(self)
        self._subscription = BusSubscription(
            reactor,
            self._factory,
            HostPort.parse(settings.threatbus),
            Wish((INTEL_TOPIC,), settings.snapshot, "tbvast-bridge", settings.heartbeat),
            StoreCursor(
                ask,
                position,
                calendar,
                settings.retro_match,
                self._changed,
                self._session.changing,
            ),
            self._report,
            self._outbox.flush,
            # What a bus of the same limit sends, with what it puts around it.
            {zmq.MAXMSGSIZE: settings.max_message_bytes + FRAME_BYTES},
            self._keys,
        )
        self._subscription.setServiceParent(self)

    def _engine_address(self) -> HostPort:
        """
        Where the engine is; an embedded node is made if there is none.
        """
        settings = self._settings
        if settings.vast != "auto":
            return HostPort.parse(settings.vast)
        if self._old:
            return OLD_ADDRESS
        address = HostPort.parse(settings.vast_listen)
        if listens(address):
            self._log.info("Using the node that runs at {address}.", address=str(address))
        else:
            self._log.info("Starting an embedded node at {address}.", address=str(address))
            node = EmbeddedNode(self._reactor, address, self._state / "engine")
            node.setServiceParent(self)
            self._embedded = True
        return address

    def _engine(self, address: HostPort) -> IEngine:
        if self._old:
            return VastEngine(str(address), self._binary)
        return TenzirEngine(
            str(address),
            self._binary,
            self._state / "client",
            sources=with_mappings(self._settings.fields),
            subdomains=self._settings.subdomains,
            local=self._embedded or None,
        )

    def _transform(self) -> TransformContext | None:
        text = self._settings.transform_context
        if not text:
            return None
        command = parse_command(text, "transform_context")
        transform = TransformContext(command, self._reactor, self._reactor)
        transform.setServiceParent(self)
        return transform

    def _deliver(self) -> Deliver:
        settings = self._settings
        if not settings.sink:
            return lambda documents: self._subscription.report_sightings(documents)
        sink: StdoutSink | CommandSink
        if settings.sink == StdoutSink.NAME:
            sink = StdoutSink(self._reactor, self._reactor)
        else:
            command = parse_command(settings.sink, "sink")
            sink = CommandSink(command, self._reactor, self._reactor, settings.sink_stream)
        sink.setServiceParent(self)
        return SinkHanding(sink)

    def _changed(self, changes: Changes) -> None:
        for reasons, indicators in by_reasons(changes.unmatched):
            self._log.warn(
                "{count} indicators are not matched, or not all of them ({reasons}): {indicators}",
                count=len(indicators),
                reasons="; ".join(reasons),
                indicators=", ".join(indicators),
            )
        self._session.changed(changes)

    def _changed_all(self, all: Iterable[Changes]) -> None:
        for changes in all:
            self._changed(changes)

    # Housekeeping

    def _expire(self) -> Deferred[None]:
        return self._housekeep(self._changed_all, Keeper.expire, calendar())

    def _begin(self) -> Deferred[None]:
        search = self._settings.retro_match
        return self._housekeep(self._changed_all, Keeper.begin, calendar(), search)

    def _forget(self) -> Deferred[None]:
        return self._housekeep(_ignore, Keeper.forget, calendar())

    def _count(self) -> Deferred[None]:
        return self._housekeep(self._counted, Keeper.counts)

    def _counted(self, counts: dict[str, Any]) -> None:
        aside, before = counts.get("set_aside"), self._counts.get("set_aside")
        if aside and aside != before:
            self._log.warn(
                "{count} items could not be handled so far, and were set aside."
                " The newest: {newest}",
                count=aside["count"],
                newest=shown(aside["newest"]),
            )
        self._counts = counts

    def _housekeep(self, then: Callable[[Any], None], call: Any, *args: Any) -> Deferred[None]:
        return (
            self._keeper.ask(call, *args)
            .addCallback(then)
            .addErrback(functools.partial(self._log.failure, "While tidying the store"))
        )

    async def _sight(self, matches: list[Match], match_type: MatchType) -> int:
        sightings = await self._maker.make(matches, match_type)
        await self._outbox.add(sightings)
        return len(sightings)

    def _report(self) -> dict[str, Any]:
        cut = dict(self._driven.cut)
        return {
            "engine": {**self._session.report(), **({"cut": cut} if cut else {})},
            "store": self._counts,
            "sightings": {
                "made": self._outbox.made,
                "handed_on": self._outbox.delivered,
                "set_aside": self._outbox.set_aside + self._maker.unmade,
            },
        }

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await super().stopService()
        self._factory.shutdown()
        await self._keeper.stop()


def by_reasons(
    unmatched: Mapping[str, tuple[str, ...]],
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """
    What is not matched, by the reasons of that; at most L{NAMED} indicators at once.

    @param unmatched: The reasons, by indicator.
    """
    named: dict[tuple[str, ...], list[str]] = {}
    for id, reasons in unmatched.items():
        named.setdefault(reasons, []).append(id)
    for reasons, ids in named.items():
        for start in range(0, len(ids), NAMED):
            yield reasons, ids[start : start + NAMED]


def _ignore(result: Any) -> None:
    """
    What is done with a result that says nothing.
    """


def listens(address: HostPort) -> bool:
    """
    Whether somebody listens at an address; blocks for a moment.
    """
    try:
        socket.create_connection((address.host, address.port), _PROBE).close()
    except OSError:
        return False
    return True
