"""
The bridge: gives an engine the indicators of a bus, and reports its matches as sightings.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import zmq
from twisted.application.internet import TimerService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.logger import Logger

from tbvast.bridge.bus_cursor import StoreCursor
from tbvast.bridge.commands.command_line import parse_command
from tbvast.bridge.commands.command_sink import CommandSink
from tbvast.bridge.commands.context_command import ContextCommand
from tbvast.bridge.commands.sink_delivery import DeliverToSink
from tbvast.bridge.commands.stdout_sink import StdoutSink
from tbvast.bridge.engine_sync import EngineSync
from tbvast.bridge.live_match import CATCH_UP_TIMEOUT, LiveMatch
from tbvast.bridge.node_watch import NodeWatch, Task
from tbvast.bridge.outbox import Counters, Outbox
from tbvast.bridge.retro_search import RetroSearch
from tbvast.bridge.sighting_factory import SightingFactory
from tbvast.bridge.store.client import IndicatorStore, SightingOutbox
from tbvast.bridge.store.values import OpenedStore
from tbvast.bridge.store.worker import NO, YES
from tbvast.bus_client.subscription import BusSubscription, SubscriptionRequest
from tbvast.engines.binaries import find_client
from tbvast.engines.tenzir.configuration import CERTIFICATE_NAME, CLIENT_SETTINGS, Tls
from tbvast.engines.tenzir.embedded_node import EmbeddedNode
from tbvast.engines.tenzir.engine import TenzirEngine
from tbvast.engines.threads import EngineThreads
from tbvast.engines.vast import VastEngine
from tbvast.errors import StartupRefused, StoreFailed, shown
from tbvast.interfaces import IEngine
from tbvast.protocol.replay import FRAME_BYTES
from tbvast.service.clock import boot, calendar
from tbvast.service.flusher import Deliver
from tbvast.service.listeners import listening_users
from tbvast.service.process import SequentialService, ServiceProcess
from tbvast.settings.schema import BridgeSettings
from tbvast.stix.sightings import MatchType
from tbvast.storage.worker_client import Worker
from tbvast.telemetry.known_fields import with_mappings
from tbvast.values import Changes, HostPort, JsonObject, Match, Position
from tbvast.zeromq.curve import load_client_options
from tbvast.zeromq.sockets import Factory

STORE_NAME = "bridge.db"

INTEL_TOPIC = "stix2/indicator"

VALIDITY_INTERVAL, PRUNE_INTERVAL = 1.0, 3600.0
"""
Seconds between the checks for indicators that have expired or become valid, and between the
deletions of the ids of sightings that were sent long ago.
"""

MAX_INDICATORS_PER_LINE = 100
"""
The most indicators that one log line names.
"""

VAST_COMMAND = "vast"
VAST_ADDRESS = HostPort("127.0.0.1", 42000)
"""
The command of VAST, Tenzir's predecessor, and the default address of its node.
"""


class Bridge(SequentialService):
    """
    The service of one bridge.
    """

    _log = Logger()

    def __init__(self, reactor: Any, settings: BridgeSettings, process: ServiceProcess) -> None:
        """
        @param process: It has the state directory, and ends if the bridge cannot continue.
        @raise EngineMissing: If the engine's command does not exist.
        @raise KeyUnusable: If a key file cannot be used.
        """
        super().__init__()
        self._reactor = reactor
        self._settings = settings
        self._process = process
        self._state = Path(process.state.path)
        self._is_vast = settings.engine == "vast"
        self._binary = find_client(
            settings.vast_binary or (VAST_COMMAND if self._is_vast else None)
        )
        self._keys = load_client_options(settings.curve_key, settings.server_key)
        self._counters = Counters()
        self._store_counts: JsonObject = {}
        self._worker = Worker(
            reactor,
            "the store's worker",
            "tbvast.bridge.store.worker",
            [str(self._state / STORE_NAME), YES if settings.retro_match else NO],
            StoreFailed,
            process.fail,
        )

    def startService(self) -> None:
        """
        @raise StoreFailed: If the store cannot be used.
        @raise StartupRefused: If the directory of an embedded node cannot be used.
        """
        opened: OpenedStore = self._worker.start(OpenedStore)
        if opened.renewed:
            self._log.critical("{description}", description=opened.renewed)
        self._factory = Factory(self._reactor)
        self._compose(opened.position, opened.identity)
        try:
            super().startService()
        except Exception:
            self._factory.shutdown()
            raise

    def _compose(self, position: Position | None, identity: str) -> None:
        settings, reactor, ask = self._settings, self._reactor, self._worker.ask
        indicators = self._indicators = IndicatorStore(ask, calendar, settings.retro_match)
        self._sightings = SightingOutbox(ask, calendar)
        self._identity = identity
        address, blocking = self._find_engine()
        threads = EngineThreads(reactor, blocking)
        self._sighting_factory = SightingFactory(
            calendar, indicators, settings.engine, self._transform(), self._counters
        )
        self._outbox = Outbox(reactor, self._sightings, self._deliver(), self._counters)
        node = self._node = NodeWatch(
            reactor,
            HostnameEndpoint(reactor, address.host, address.port),
            threads.client,
            self._fill_engine,
            self._engine_tasks,
            lambda e: self._process.fail(str(e)),
        )
        self._sync = sync = EngineSync(node, indicators)
        search = self._search = RetroSearch(
            node,
            indicators,
            sync,
            self._store_sightings,
            self._counters,
            calendar,
            settings.retro_match_max_events,
            settings.retro_match_timeout,
            settings.retro_match_days,
        )
        self._live = LiveMatch(
            node,
            indicators,
            search,
            self._store_sightings,
            calendar,
            settings.retro_match_timeout if settings.retro_match else CATCH_UP_TIMEOUT,
            boot(),
        )
        for service in (threads, self._outbox, self._live, node):
            service.setServiceParent(self)
        for interval, call in (
            (VALIDITY_INTERVAL, self._update_validity),
            (PRUNE_INTERVAL, self._sightings.prune),
            (settings.heartbeat, self._read_counts),
        ):
            timer = TimerService(interval, self._maintain, call)
            timer.clock = reactor
            timer.setServiceParent(self)
        self._subscription = BusSubscription(
            reactor,
            self._factory,
            HostPort.parse(settings.threatbus),
            SubscriptionRequest(
                (INTEL_TOPIC,), settings.snapshot, "tbvast-bridge", settings.heartbeat
            ),
            StoreCursor(indicators, position, self._changed, sync.changing),
            self._report,
            self._outbox.flush,
            # The largest message of a bus with the same limit, with its framing.
            {zmq.MAXMSGSIZE: settings.max_message_bytes + FRAME_BYTES},
            self._keys,
        )
        self._subscription.setServiceParent(self)

    def _find_engine(self) -> tuple[HostPort, IEngine]:
        """
        @return: The node's address, and its engine. If no node runs there, an embedded one is
            created.
        """
        settings = self._settings
        automatic = settings.vast == "auto"
        if self._is_vast:
            address = VAST_ADDRESS if automatic else HostPort.parse(settings.vast)
            return address, VastEngine(str(address), self._binary, self._identity)
        address = HostPort.parse(settings.vast_listen if automatic else settings.vast)
        embedded = automatic and not listens(address)
        client = (self._state / CLIENT_SETTINGS).parent
        tls: Tls | None
        if embedded:
            self._log.info("Starting an embedded node at {address}.", address=str(address))
            certificate = client / CERTIFICATE_NAME
            tls = Tls.of_embedded(certificate)
            state, plugins = self._state / "engine", settings.vast_plugins
            node = EmbeddedNode(self._reactor, address, state, certificate, plugins)
            node.setServiceParent(self)
        else:
            if automatic:
                self._check_owner(address)
                self._log.info("Using the node that runs at {address}.", address=str(address))
            files = (settings.vast_certificate, settings.vast_key, settings.vast_authority)
            tls = Tls(*files) if all(files) else None
        return address, TenzirEngine(
            str(address),
            self._binary,
            client,
            self._identity,
            sources=with_mappings(settings.fields),
            subdomains=settings.subdomains,
            local=embedded or None,
            own=embedded,
            tls=tls,
        )

    def _check_owner(self, address: HostPort) -> None:
        """
        Check that a node that nobody named can be trusted with the indicators.

        @raise StartupRefused: If it may be a program of another user.
        """
        users = listening_users(address)
        if users is None:
            reason = "this system does not tell whose program listens"
        elif others := users - {0, os.getuid()}:
            reason = f"a program of the user {min(others)} listens"
        else:
            return
        raise StartupRefused(
            f"{reason} on {address}; if it is your node, name it with --vast {address};"
            " otherwise let the embedded node listen elsewhere with --vast-listen"
        )

    async def _fill_engine(self) -> None:
        if self._settings.live_match:
            await self._live.begin()
        await self._sync.reconcile()

    def _engine_tasks(self) -> Iterator[Task]:
        yield self._sync.maintain()
        if self._settings.live_match:
            yield self._live.run()
        if self._settings.retro_match:
            yield self._search.run()

    def _transform(self) -> ContextCommand | None:
        text = self._settings.transform_context
        if not text:
            return None
        stream = self._settings.transform_stream
        command = parse_command(text, "transform_context", stream)
        transform = ContextCommand(command, self._reactor, self._reactor, stream)
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
            command = parse_command(settings.sink, "sink", settings.sink_stream)
            sink = CommandSink(command, self._reactor, self._reactor, settings.sink_stream)
        sink.setServiceParent(self)
        return DeliverToSink(sink)

    def _changed(self, changes: Changes) -> None:
        by_reasons: dict[tuple[str, ...], list[str]] = {}
        for id, reasons in changes.unmatched.items():
            by_reasons.setdefault(reasons, []).append(id)
        for reasons, ids in by_reasons.items():
            for start in range(0, len(ids), MAX_INDICATORS_PER_LINE):
                some = ids[start : start + MAX_INDICATORS_PER_LINE]
                self._log.warn(
                    "{count} indicators are not matched, or not all of them ({reasons}):"
                    " {indicators}",
                    count=len(some),
                    reasons="; ".join(reasons),
                    indicators=", ".join(some),
                )
        self._sync.changed(changes)
        self._search.withdraw(changes.erase)

    async def _maintain(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except StoreFailed as e:
            self._log.error("Cannot maintain the store: {reason}", reason=str(e))
        except Exception:
            self._log.failure("Cannot maintain the store")

    async def _update_validity(self) -> None:
        for changes in await self._indicators.update_validity():
            self._changed(changes)

    async def _read_counts(self) -> None:
        before, self._store_counts = self._store_counts, await self._indicators.counts()
        aside = self._store_counts.get("set_aside")
        if aside and aside != before.get("set_aside"):
            self._log.warn(
                "{count} items could not be handled so far, and were set aside."
                " The newest: {newest}",
                count=aside["count"],
                newest=shown(aside["newest"]),
            )

    def _store_sightings(self, matches: list[Match], match_type: MatchType) -> Deferred[None]:
        async def store() -> None:
            sightings = await self._sighting_factory.make(matches, match_type)
            await self._outbox.add(sightings)

        return Deferred.fromCoroutine(store())

    def _report(self) -> JsonObject:
        cut, counters = dict(self._node.engine.cut), self._counters
        live = self._live.report() if self._settings.live_match else {"live": False}
        return {
            "engine": {
                **self._node.report(),
                "identity": self._identity,
                **live,
                "pending": self._sync.pending,
                "matched": {type.lower(): count for type, count in counters.matched.items()},
                "searches": counters.searches,
                **self._search.report(),
                **({"cut": cut} if cut else {}),
            },
            "store": self._store_counts,
            "sightings": {
                "made": counters.made,
                "handed_on": counters.delivered,
                "set_aside": counters.set_aside,
            },
        }

    def stopService(self) -> Deferred[None]:
        """
        @return: Fires when all parts, and then the store's worker, have stopped.
        """
        return (
            super()
            .stopService()
            .addCallback(lambda _: self._factory.shutdown())
            .addCallback(lambda _: self._worker.stop())
        )


def listens(address: HostPort) -> bool:
    """
    Whether a server listens at an address. Blocks for a second at most.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=1.0).close()
    except OSError:
        return False
    return True
