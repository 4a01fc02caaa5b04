"""
C{tbvast publish} and C{tbvast remove}: indicators for the bus.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater

from tbvast.bus_client.manage_client import ManageClient
from tbvast.bus_client.report_publisher import ReportPublisher
from tbvast.cli.input_files import SOURCE, Reading, Submission, read
from tbvast.cli.keys import KeyFiles
from tbvast.cli.terminal import Screen
from tbvast.errors import (
    BusRefused,
    BusUnreachable,
    ObservableInvalid,
    ProtocolInvalid,
    SettingsInvalid,
)
from tbvast.protocol import manage
from tbvast.protocol.frames import INDICATOR_TOPIC
from tbvast.protocol.topics import STREAM_TOPICS, Stream
from tbvast.service.clock import calendar
from tbvast.settings import HostPort
from tbvast.stix.documents import STIX_ID
from tbvast.stix.indicators import decode_indicator, make_indicator, removal
from tbvast.stix.observables import guess
from tbvast.zeromq.sockets import Factory, SocketOptions

BATCH = 1000
"""
The most documents in one request.
"""

BATCH_BYTES = 2**20
"""
The most bytes of documents in one request, unless one document alone is longer.
"""

ANSWER = 60.0
"""
Seconds that the bus has to make a batch durable.
"""

LISTEN = 5.0
"""
Seconds that a Threat Bus has to listen, or to take more.
"""

LINGER = 5000
"""
Milliseconds that a Threat Bus has to take the last documents.
"""

AGAIN = 0.05
"""
Seconds after which a Threat Bus is offered again what it did not take.
"""

INPUT_NAME = "standard input"

NOT_SENT = "not sent"
SENT = "sent"
REFUSED = "refused"
UNKNOWN = "unknown"
OUTDATED = "outdated"
ACCEPTED = "accepted"
REMOVED_BEFORE = "removed before"
REPEATED = "repeated"

_SAID = {
    REFUSED: "refused by the bus",
    UNKNOWN: "not known to the bus, so that there is nothing to remove",
    OUTDATED: "not taken by the bus",
}

PUBLISHED = {REPEATED: "repeated (in force already)"}
REMOVED = {ACCEPTED: "removed"}
"""
What outcomes are called where that is not their name.
"""


class Tally:
    """
    What became of documents.

    @ivar outcomes: How many had each outcome.
    @ivar lines: A line about each whose outcome is bad, with where it stands.
    """

    def __init__(self, good: Iterable[str], words: dict[str, str] | None = None) -> None:
        """
        @param good: The only outcomes that are what the user wanted.
        @param words: What outcomes are called, where that is not their name.
        """
        self.outcomes: Counter[str] = Counter()
        self.lines: list[str] = []
        self._good = frozenset(good)
        self._words = words or {}

    def refuse(self, line: str) -> None:
        """
        Count a document that was not even sent.
        """
        self.outcomes[REFUSED] += 1
        self.lines.append(line)

    def count(self, submission: Submission, outcome: str, reason: str = "") -> None:
        """
        Count a document.
        """
        self.outcomes[outcome] += 1
        if outcome not in self._good:
            end = f": {reason}" if reason else ""
            self.lines.append(f"{submission.name}: {_SAID.get(outcome, outcome)}{end}")

    @property
    def good(self) -> bool:
        """
        Whether all is as the user wanted.
        """
        return not any(
            count for outcome, count in self.outcomes.items() if outcome not in self._good
        )

    def __str__(self) -> str:
        counted = ", ".join(
            f"{count} {self._words.get(outcome, outcome)}"
            for outcome, count in self.outcomes.items()
            if count
        )
        total = self.outcomes.total()
        return (
            f"{total} indicator{'' if total == 1 else 's'}: {counted}" if total else "0 indicators"
        )


def batches(submissions: Iterable[Submission]) -> Iterator[list[Submission]]:
    """
    Submissions in portions, each for one request.
    """
    batch: list[Submission] = []
    size = 0
    for submission in submissions:
        length = len(submission.document) + 1
        if batch and (len(batch) == BATCH or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(submission)
        size += length
    if batch:
        yield batch


def read_inputs(names: Sequence[str], now: datetime) -> Reading:
    """
    @param names: Paths; C{-} is standard input.
    @raise SettingsInvalid: If one cannot be read.
    """
    reading = Reading()
    for name in names:
        if name == "-":
            reading.add(read(INPUT_NAME, sys.stdin.buffer.read(), now))
            continue
        try:
            raw = Path(name).read_bytes()
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or e
            raise SettingsInvalid("FILE", name, f"a file that can be read: {reason}") from e
        reading.add(read(name, raw, now))
    return reading


def removals(names: Sequence[str], now: datetime) -> list[Submission]:
    """
    @param names: Ids of indicators; or observables, which stand for the indicators
        that are made of them when they are published.
    @raise SettingsInvalid: If one is neither.
    """
    submissions = []
    for name in names:
        match = STIX_ID.fullmatch(name)
        if match is None:
            id = _id_of_observable(name, now)
        elif match[1] == "indicator":
            id = name
        else:
            raise SettingsInvalid("ID", name, "the id of an indicator: indicator--UUID")
        submissions.append(Submission(name, removal(id, now), id, removes=True))
    return submissions


def _id_of_observable(text: str, now: datetime) -> str:
    try:
        observable = guess(text)
    except ObservableInvalid as e:
        raise SettingsInvalid("ID", text, "indicator--UUID, or an observable") from e
    return decode_indicator(make_indicator(observable, now=now, source=SOURCE)).id


def summary(tally: Tally, reading: Reading) -> Iterator[str]:
    """
    What to say at the end of C{publish}.
    """
    yield str(tally)
    if reading.ignored:
        types = ", ".join(f"{count} {type}" for type, count in sorted(reading.ignored.items()))
        yield f"{reading.ignored.total()} other objects ignored: {types}"
    if reading.unmatchable:
        yield f"{reading.unmatchable.total()} of the indicators cannot be matched by tbvast-bridge:"
        for reason, count in reading.unmatchable.most_common():
            yield f"  {count} for {reason}"


async def publish(
    reactor: Any, screen: Screen, bus: HostPort, keys: KeyFiles, files: Sequence[str]
) -> bool:
    """
    @return: Whether all of it is in force on the bus.
    """
    options = keys.load()
    reading = read_inputs(files, _now())
    tally = Tally((ACCEPTED, REPEATED, REMOVED_BEFORE, SENT), PUBLISHED)
    for line in reading.refused:
        tally.refuse(line)
    try:
        if reading.submissions:
            await _deliver(reactor, screen, bus, options, reading.submissions, tally, announce=True)
    finally:
        for line in tally.lines:
            screen.complain(line)
        for line in summary(tally, reading):
            screen.tell(line)
    return tally.good


async def remove(
    reactor: Any, screen: Screen, bus: HostPort, keys: KeyFiles, names: Sequence[str]
) -> bool:
    """
    @return: Whether all of them are removed.
    """
    options = keys.load()
    submissions = removals(names, _now())
    tally = Tally((ACCEPTED, REMOVED_BEFORE), REMOVED)
    try:
        await _deliver(reactor, screen, bus, options, submissions, tally, announce=False)
    finally:
        for line in tally.lines:
            screen.complain(line)
        screen.tell(str(tally))
    return tally.good


def _now() -> datetime:
    return datetime.fromtimestamp(calendar(), UTC)


async def _deliver(
    reactor: Any,
    screen: Screen,
    bus: HostPort,
    keys: SocketOptions,
    submissions: Sequence[Submission],
    tally: Tally,
    announce: bool,
) -> None:
    """
    Send documents to a bus.

    @param announce: Whether they may go to the sub endpoint of a Threat Bus, which
        says nothing about what it makes of them.
    @raise BusUnreachable: If the bus does not answer; what is left is counted.
    @raise BusRefused: If it cannot take any; what is left is counted.
    """
    factory = Factory(reactor, linger=0)
    client = ManageClient(reactor, factory, bus, keys)
    before = tally.outcomes.total()
    try:
        acknowledges = await _acknowledges(client)
        if not acknowledges and not announce:
            raise BusRefused("remove", f"{bus} is a Threat Bus, which knows no such request")
        with screen.progress(str(bus), len(submissions)) as advance:
            if acknowledges:
                await _publish(client, submissions, tally, advance)
            else:
                screen.complain(
                    f"{bus} is a Threat Bus: it does not say what it makes of indicators"
                )
                await _announce(reactor, client, bus, keys, submissions, tally, advance)
    finally:
        left = len(submissions) - (tally.outcomes.total() - before)
        tally.outcomes[NOT_SENT] += left
        factory.shutdown()


async def _acknowledges(client: ManageClient) -> bool:
    """
    Whether a bus is one that knows the publish request.
    """
    reply = await client.ask(manage.encode_status())
    try:
        answer = manage.decode_reply(reply)
    except ProtocolInvalid as e:
        raise BusRefused("answer", str(e)) from e
    if answer.get("protocol") == manage.PROTOCOL:
        return True
    if answer.get("status") == "unknown request":
        return False
    raise BusRefused("answer", str(answer.get("status")))


async def _publish(
    client: ManageClient,
    submissions: Sequence[Submission],
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    for batch in batches(submissions):
        request = manage.encode_publish([submission.document for submission in batch])
        reply = await client.ask(request, ANSWER)
        try:
            published = manage.decode_published(reply)
        except ProtocolInvalid as e:
            raise BusRefused("publish", e.expected) from e
        if len(published.outcomes) != len(batch):
            raise BusRefused("publish", "its reply is about other documents")
        for position, submission in enumerate(batch):
            outcome = published.outcomes[position]
            if submission.removes and outcome == REPEATED:
                outcome = REMOVED_BEFORE
            tally.count(submission, outcome, published.reasons.get(position, ""))
        advance(len(batch))


async def _announce(
    reactor: Any,
    client: ManageClient,
    bus: HostPort,
    keys: SocketOptions,
    submissions: Sequence[Submission],
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    address = HostPort(bus.host, await _sub_port(client))
    factory = Factory(reactor, LINGER)
    try:
        publisher = ReportPublisher(factory, f"tcp://{address}", lambda: None, keys)
        for submission in submissions:
            frame = INDICATOR_TOPIC + b" " + submission.document
            deadline = reactor.seconds() + LISTEN
            while not publisher.send(frame):
                if reactor.seconds() > deadline:
                    raise BusUnreachable(str(address), LISTEN)
                await deferLater(reactor, AGAIN)
            tally.count(submission, SENT)
            advance(1)
    finally:
        factory.shutdown()


async def _sub_port(client: ManageClient) -> int:
    """
    The port of a bus's sub endpoint, which only a subscription tells.
    """
    topics = STREAM_TOPICS[Stream.SIGHTING][:1]
    reply = await client.ask(manage.encode_subscribe(topics, 0, "tbvast publish"))
    try:
        subscribed = manage.decode_subscribed(reply)
    except ProtocolInvalid as e:
        raise BusRefused("subscribe", e.expected) from e
    await client.ask(manage.encode_unsubscribe(subscribed.topic))
    return subscribed.sub_port
