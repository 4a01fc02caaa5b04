"""
The demonstration C{python -m devtools.demo}: from indicator to sighting, on real input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text
from twisted.internet.defer import Deferred, DeferredList, TimeoutError
from twisted.internet.task import deferLater

import tbvast
from devtools.score import Score
from devtools.services import RunningBridge, RunningCommand, RunningPlugin, until
from devtools.telemetry import (
    INDICATORS,
    Log,
    Occurrence,
    find_occurrences,
    read_logs,
    split_past_and_future,
)
from tbvast.bus_client.subscription import BusSubscription, Listener, SubscriptionRequest
from tbvast.cli.input_files import InputContents
from tbvast.cli.main import run_process
from tbvast.cli.status import list_at, value_at
from tbvast.cli.terminal import Screen, escaped_text
from tbvast.cli.watch import make_row, terminal_header, terminal_line
from tbvast.engines import binaries
from tbvast.protocol.frames import Item
from tbvast.protocol.manage import encode_status
from tbvast.protocol.topics import STREAM_TOPICS, Stream
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.sightings import MatchType, Sighting
from tbvast.zeromq.sockets import Factory

DATA = Path(tbvast.__file__).parents[1] / "tests" / "data"
"""
The data directory of a checkout.
"""

DESCRIPTION = """\
Starts a bus, a bridge and an embedded engine on free ports, publishes indicators, and
imports telemetry of Suricata and Zeek before and after that. Shows the sightings as
they arrive; the exit status is 0 if every expected one came, and no other. Leaves no
process and no file behind.
"""

BUNDLES = ("apt1", "poisonivy", "amnesty-cytrox", "amnesty-novispy")
"""
The STIX bundles that are also published; their indicators do not occur in the telemetry.
"""

BRIDGE_SETTINGS = """\
bridge:
  heartbeat: 0.5
  retro_match_max_events: 0
"""

TIMEOUT_SECONDS = 60.0
"""
Time limit for the expected sightings of a phase.
"""

QUIET_SECONDS = 1.5
"""
The time to wait, after all expected sightings, for unexpected ones.
"""

DEFAULT_WIDTH = 110
"""
The width of the lines without a terminal, in columns.
"""


class Demonstration:
    """
    Runs a bus, a bridge and an engine, and checks their sightings.
    """

    def __init__(self, reactor: Any, screen: Screen, data: Path, folder: Path) -> None:
        """
        @param screen: The streams of the command.
        @param data: The directory of the telemetry and the STIX bundles.
        @param folder: An empty directory for state and configuration.
        @raise StartupRefused: If the data cannot be read.
        @raise EngineMissing: If no engine is installed.
        """
        self._reactor = reactor
        self._screen = screen
        self._client = binaries.find_client()
        self._folder = folder
        self._past, self._future = split_past_and_future(read_logs(data))
        self._bundles = [str(data / "stix" / f"{name}.json") for name in BUNDLES]
        self._lines = "".join(f"{each.value}\n" for each in INDICATORS).encode()
        self._score = Score(
            {
                MatchType.RETRO: find_occurrences(INDICATORS, self._past),
                MatchType.LIVE: find_occurrences(INDICATORS, self._future),
            }
        )
        made = InputContents()
        made.read("", self._lines, datetime.fromtimestamp(0, UTC))
        self._values = {
            decode_indicator(submission.document).id: wanted.value
            for submission, wanted in zip(made.submissions, INDICATORS, strict=True)
        }
        (folder / "tap.conf").write_text(BRIDGE_SETTINGS)
        self._plugin = RunningPlugin(reactor, folder / "plugin")
        self._bridge = RunningBridge(
            reactor, self._plugin.manage, folder / "bridge", f"--config={folder / 'tap.conf'}"
        )
        self._factory = Factory(reactor)
        self._subscription = BusSubscription(
            reactor,
            self._factory,
            self._plugin.manage,
            SubscriptionRequest(STREAM_TOPICS[Stream.SIGHTING][:1], 0, "tbvast demo", 5.0),
            Listener(self._received),
        )
        self._import_times: dict[int, float] = {}
        self._published = 0.0
        self._observers: list[Callable[[], None]] = []

    async def run(self) -> bool:
        """
        Run the demonstration.

        @return: Whether every expected sighting arrived, and no other.
        @raise CommandEnded: If a service ended, or a command failed.
        """
        try:
            await self._run_phases()
        finally:
            await self._stop()
        self._screen.render(self._score.table(INDICATORS))
        for text in self._score.lines():
            self._screen.write_line(text)
        good = self._score.perfect
        self._announce(
            "Every expected sighting came, and no other." if good else "Not as expected."
        )
        return good

    async def _run_phases(self) -> None:
        begun = self._reactor.seconds()
        self._announce("Starting tbvast-plugin and tbvast-bridge, which starts an embedded engine.")
        await self._plugin.start()
        await self._bridge.start()
        self._subscription.startService()
        self._announce(f"They are ready, after {self._reactor.seconds() - begun:.1f} s.")

        self._announce(f"Importing past events: {_describe(self._past)}.")
        await self._import(self._past)

        self._announce(
            f"Publishing {len(BUNDLES)} STIX bundles, and {len(INDICATORS)} observables."
        )
        published = await self._publish()

        self._announce("Searching the past events for them.")
        self._show(terminal_header(self._width))
        await self._wait_until(lambda: self._score.complete(MatchType.RETRO))
        await self._wait_until_searched(published)

        self._announce(f"Importing new events: {_describe(self._future)}.")
        await self._import(self._future)
        await self._wait_until(lambda: self._score.complete(MatchType.LIVE))
        await deferLater(self._reactor, QUIET_SECONDS)

    async def _stop(self) -> None:
        if self._subscription.running:
            await self._subscription.stopService()
        self._factory.shutdown()
        await self._bridge.stop()
        await self._plugin.stop()

    # Actions

    async def _import(self, logs: Sequence[Log]) -> None:
        for log in logs:
            now = self._reactor.seconds()
            self._import_times.update(dict.fromkeys(log.times, now))
            await self._run_command(
                f"the import of {log.name}",
                [
                    self._client,
                    f"--config={self._bridge.client}",
                    "--connection-timeout=5s",
                    "--console-verbosity=warning",
                    log.pipeline,
                ],
                log.text,
            )

    async def _publish(self) -> int:
        """
        Publish the bundles and the indicators.

        @return: The number of indicators on the bus.
        """
        self._published = self._reactor.seconds()
        bus = f"--threatbus={self._plugin.manage}"
        output = await self._run_command(
            "tbvast publish",
            [sys.executable, "-m", "tbvast.cli.main", "publish", bus, "-", *self._bundles],
            self._lines,
        )
        for text in output:
            self._screen.write_line(f"  {text}")
        status = await self._plugin.ask(encode_status())
        return int(status["journal"]["indicators"])

    async def _run_command(self, name: str, arguments: Sequence[str], stdin: bytes) -> list[str]:
        """
        Run a command to its end.

        @return: The lines of its output.
        @raise CommandEnded: If it failed.
        """
        command = RunningCommand(self._reactor, name)
        command.run(arguments, stdin)
        try:
            status = await command.wait()
        finally:
            await command.stop()
        if status:
            raise command.failure()
        return command.lines

    # Conditions

    async def _wait_until_searched(self, indicators: int) -> None:
        """
        Wait until the bridge has searched past events for all indicators.
        """

        async def searched() -> bool:
            status = await self._plugin.ask(encode_status())
            stores = [
                value_at(each, "report", "store") for each in list_at(status, "subscriptions")
            ]
            return any(
                value_at(store, "indicators") == indicators and value_at(store, "unsearched") == 0
                for store in stores
            )

        with suppress(TimeoutError):  # the summary lists the missing sightings
            await until(self._reactor, searched, TIMEOUT_SECONDS)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        """
        Wait until arriving sightings meet a condition, up to a time limit.

        @raise CommandEnded: If a service ends meanwhile.
        """
        if condition():
            return
        true: Deferred[None] = Deferred()

        def look() -> None:
            if not true.called and condition():
                true.callback(None)

        self._observers.append(look)
        services = (self._plugin, self._bridge)
        waited: list[Deferred[Any]] = [true, *(service.wait() for service in services)]
        either = DeferredList(waited, fireOnOneCallback=True, consumeErrors=True)
        try:
            await either.addTimeout(TIMEOUT_SECONDS, self._reactor)
        except TimeoutError:
            pass  # the summary lists the missing sightings
        finally:
            self._observers.remove(look)
        for service in services:
            if service.status is not None:
                raise service.failure()

    def _received(self, items: list[Item]) -> None:
        now = self._reactor.seconds()
        for item in items:
            if isinstance(item, Sighting):
                self._count_sighting(item, now)
        for look in list(self._observers):
            look()

    def _count_sighting(self, sighting: Sighting, now: float) -> None:
        shown = make_row(sighting)
        self._show(terminal_line(shown, self._width))
        time = sighting.last_seen or 0
        found = Occurrence(self._values.get(sighting.indicator, sighting.indicator), time)
        phase = MatchType.LIVE if shown.action == MatchType.LIVE else MatchType.RETRO
        since = self._import_times.get(time, now) if phase is MatchType.LIVE else self._published
        self._score.count(phase, found, now - since)

    # Output

    @property
    def _width(self) -> int:
        return self._screen.width if self._screen.is_terminal else DEFAULT_WIDTH

    def _announce(self, text: str) -> None:
        self._show(escaped_text(text, "bold cyan"))

    def _show(self, text: Text) -> None:
        if self._screen.is_terminal:
            self._screen.render(text)
        else:
            self._screen.write_line(text.plain)


def _describe(logs: Sequence[Log]) -> str:
    events = sum(len(log.events) for log in logs)
    return f"{events:,} events of Suricata and Zeek"


async def demonstrate(reactor: Any, screen: Screen, data: Path) -> bool:
    """
    Run the demonstration in a temporary directory.

    @param screen: The streams of the command.
    @param data: The directory of the telemetry and the STIX bundles.
    @return: Whether every expected sighting arrived, and no other.
    """
    with tempfile.TemporaryDirectory(prefix="tbvast-demo-") as folder:
        return await Demonstration(reactor, screen, data, Path(folder)).run()


def main() -> None:
    """
    Run the demonstration as a command.

    @raise SystemExit: Always, with the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m devtools.demo", description=DESCRIPTION)
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=DATA,
        help="the data directory (default: %(default)s)",
    )
    run_process(partial(demonstrate, data=parser.parse_args().data))


if __name__ == "__main__":
    main()
