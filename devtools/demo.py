"""
C{python -m devtools.demo}: from indicator to sighting, on real input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text
from twisted.internet.defer import Deferred, DeferredList, TimeoutError
from twisted.internet.task import deferLater

import tbvast
from devtools.score import Score
from devtools.services import CommandEnded, RunningBridge, RunningCommand, RunningPlugin
from devtools.telemetry import WANTED, Found, Log, find, halves, read_logs
from tbvast.bus_client.subscription import BusSubscription, Listener, Wish
from tbvast.cli.input_files import read
from tbvast.cli.main import start
from tbvast.cli.status import at, items
from tbvast.cli.terminal import Screen, styled
from tbvast.cli.watch import header, line, row
from tbvast.engines import binaries
from tbvast.engines.tenzir.engine import command_settings
from tbvast.protocol.frames import Item
from tbvast.protocol.manage import encode_status
from tbvast.protocol.topics import STREAM_TOPICS, Stream
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.sightings import MatchType, Sighting
from tbvast.zeromq.sockets import Factory

DATA = Path(tbvast.__file__).parents[1] / "tests" / "data"
"""
Where the data is in a checkout.
"""

DESCRIPTION = """\
Starts a bus, a bridge and an embedded engine on free ports, publishes indicators, and
imports telemetry of Suricata and Zeek before and after that. Shows the sightings as
they come; the exit status is 0 if every expected one came, and no other. Nothing is
left running, and nothing is kept.
"""

BUNDLES = ("apt1", "poisonivy", "amnesty-cytrox", "amnesty-novispy")
"""
The STIX bundles that are published, too; nothing in them is in the telemetry.
"""

BRIDGE_SETTINGS = """\
bridge:
  heartbeat: 0.5
  retro_match_max_events: 0
"""

LIMIT = 60.0
"""
Seconds that sightings are waited for.
"""

QUIET = 1.5
"""
Seconds, after all that is expected, for what is not.
"""

ASK_AGAIN = 0.25
"""
Seconds between looks at how the bridge is doing.
"""

NARROW = 110
"""
Columns of the table where there is no terminal to ask.
"""


class Demonstration:
    """
    A bus, a bridge and an engine, and what there is to see of them.
    """

    def __init__(self, reactor: Any, screen: Screen, data: Path, folder: Path) -> None:
        """
        @param data: The folder with the telemetry and the STIX bundles.
        @param folder: An empty one for all that is kept meanwhile.
        @raise StartupRefused: If the data is not there.
        @raise EngineMissing: If no engine is installed.
        """
        self._reactor = reactor
        self._screen = screen
        self._client = binaries.find_client()
        self._folder = folder
        self._past, self._future = halves(read_logs(data))
        self._bundles = [str(data / "stix" / f"{name}.json") for name in BUNDLES]
        self._lines = "".join(f"{each.value}\n" for each in WANTED).encode()
        self._score = Score(
            {
                MatchType.RETRO: find(WANTED, self._past),
                MatchType.LIVE: find(WANTED, self._future),
            }
        )
        made = read("", self._lines, datetime.fromtimestamp(0, UTC)).submissions
        self._values = {
            decode_indicator(submission.document).id: wanted.value
            for submission, wanted in zip(made, WANTED, strict=True)
        }
        (folder / "client.yaml").write_text(command_settings(folder))
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
            Wish(STREAM_TOPICS[Stream.SIGHTING][:1], 0, "tbvast demo", 5.0),
            Listener(self._received),
        )
        self._since: dict[int, float] = {}
        self._published = 0.0
        self._changed: list[Callable[[], None]] = []

    async def run(self) -> bool:
        """
        @return: Whether all sightings that were expected came, and no others.
        @raise CommandEnded: If a service ended, or a command failed.
        """
        try:
            await self._play()
        finally:
            await self._end()
        self._screen.show(self._score.table(WANTED))
        for text in self._score.lines():
            self._screen.tell(text)
        good = self._score.perfect
        self._say("Every expected sighting came, and no other." if good else "Not as expected.")
        return good

    async def _play(self) -> None:
        begun = self._reactor.seconds()
        self._say("Starting tbvast-plugin and tbvast-bridge, which starts an embedded engine.")
        await self._plugin.start()
        await self._bridge.start()
        self._subscription.startService()
        self._say(f"They are ready, after {self._reactor.seconds() - begun:.1f} s.")

        self._say(f"Importing what is to be the past: {_amount(self._past)}.")
        await self._import(self._past)

        self._say(f"Publishing {len(BUNDLES)} STIX bundles, and {len(WANTED)} observables.")
        published = await self._publish()

        self._say("Looking for them in the past.")
        self._show(header(self._width))
        await self._until(lambda: self._score.complete(MatchType.RETRO))
        await self._searched(published)

        self._say(f"Importing what happens now: {_amount(self._future)}.")
        await self._import(self._future)
        await self._until(lambda: self._score.complete(MatchType.LIVE))
        await deferLater(self._reactor, QUIET)

    async def _end(self) -> None:
        if self._subscription.running:
            await self._subscription.stopService()
        self._factory.shutdown()
        await self._bridge.stop()
        await self._plugin.stop()

    # What is done

    async def _import(self, logs: Sequence[Log]) -> None:
        for log in logs:
            now = self._reactor.seconds()
            self._since.update(dict.fromkeys(log.times, now))
            await self._command(
                f"the import of {log.name}",
                [
                    self._client,
                    f"--config={self._folder / 'client.yaml'}",
                    f"--endpoint={self._bridge.engine}",
                    "--connection-timeout=5s",
                    "--console-verbosity=warning",
                    log.pipeline,
                ],
                log.text,
            )

    async def _publish(self) -> int:
        """
        @return: How many indicators the bus has.
        """
        self._published = self._reactor.seconds()
        bus = f"--threatbus={self._plugin.manage}"
        said = await self._command(
            "tbvast publish",
            [sys.executable, "-m", "tbvast.cli.main", "publish", bus, "-", *self._bundles],
            self._lines,
        )
        for text in said:
            self._screen.tell(f"  {text}")
        status = await self._plugin.ask(encode_status())
        return int(status["journal"]["indicators"])

    async def _command(self, name: str, arguments: Sequence[str], stdin: bytes) -> list[str]:
        """
        Run a command to its end.

        @return: The lines that it said.
        @raise CommandEnded: If it failed.
        """
        command = RunningCommand(self._reactor, name)
        command.run(arguments, stdin)
        try:
            status = await command.wait()
        finally:
            await command.stop()
        if status:
            raise CommandEnded(name, f"ended with exit status {status}", command.output)
        return command.lines

    # What is waited for

    async def _searched(self, indicators: int) -> None:
        """
        Wait until the bridge has looked for all indicators in the past.
        """
        deadline = self._reactor.seconds() + LIMIT
        while self._reactor.seconds() < deadline:
            status = await self._plugin.ask(encode_status())
            for subscription in items(status, "subscriptions"):
                store = at(subscription, "report", "store")
                if at(store, "indicators") == indicators and at(store, "unsearched") == 0:
                    return
            await deferLater(self._reactor, ASK_AGAIN)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """
        Wait for a condition that what arrives may change, but not for ever.

        @raise CommandEnded: If a service ends meanwhile.
        """
        if condition():
            return
        true: Deferred[None] = Deferred()

        def look() -> None:
            if not true.called and condition():
                true.callback(None)

        self._changed.append(look)
        services = (self._plugin, self._bridge)
        waited: list[Deferred[Any]] = [true, *(service.wait() for service in services)]
        either = DeferredList(waited, fireOnOneCallback=True, consumeErrors=True)
        try:
            await either.addTimeout(LIMIT, self._reactor)
        except TimeoutError:
            pass  # the summary says what is missing
        finally:
            self._changed.remove(look)
        for service in services:
            if service.status is not None:
                raise CommandEnded(
                    service.name, f"ended with exit status {service.status}", service.output
                )

    def _received(self, items: list[Item]) -> None:
        now = self._reactor.seconds()
        for item in items:
            if isinstance(item, Sighting):
                self._sighted(item, now)
        for look in list(self._changed):
            look()

    def _sighted(self, sighting: Sighting, now: float) -> None:
        shown = row(sighting)
        self._show(line(shown, self._width))
        time = sighting.last_seen or 0
        found = Found(self._values.get(sighting.indicator, sighting.indicator), time)
        phase = MatchType.LIVE if shown.what == MatchType.LIVE else MatchType.RETRO
        since = self._since.get(time, now) if phase is MatchType.LIVE else self._published
        self._score.came(phase, found, now - since)

    # What is shown

    @property
    def _width(self) -> int:
        return self._screen.width if self._screen.rich else NARROW

    def _say(self, text: str) -> None:
        self._show(styled(text, "bold cyan"))

    def _show(self, text: Text) -> None:
        if self._screen.rich:
            self._screen.show(text)
        else:
            self._screen.tell(text.plain)


def _amount(logs: Sequence[Log]) -> str:
    events = sum(len(log.events) for log in logs)
    return f"{events:,} events of Suricata and Zeek"


async def demonstrate(reactor: Any, screen: Screen, data: Path) -> bool:
    """
    Show it all, and leave nothing behind.

    @see: L{Demonstration.run}
    """
    with tempfile.TemporaryDirectory(prefix="tbvast-demo-") as folder:
        return await Demonstration(reactor, screen, data, Path(folder)).run()


def main() -> None:
    """
    @raise SystemExit: Always.
    """
    parser = argparse.ArgumentParser(prog="python -m devtools.demo", description=DESCRIPTION)
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=DATA,
        help="the folder with the data (default: %(default)s)",
    )
    start(partial(demonstrate, data=parser.parse_args().data))


if __name__ == "__main__":
    main()
