"""
The commands C{tbvast publish} and C{tbvast remove}.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
from twisted.internet.task import deferLater

from tbvast.bus_client.manage_client import ManageClient
from tbvast.bus_client.report_publisher import ReportPublisher
from tbvast.cli.input_files import SOURCE, InputContents, Submission
from tbvast.cli.keys import KeyFiles
from tbvast.cli.status import ask_status
from tbvast.cli.terminal import Screen
from tbvast.errors import BusRefused, BusUnreachable, ObservableInvalid, SettingsInvalid
from tbvast.protocol import manage
from tbvast.protocol.frames import INDICATOR_TOPIC
from tbvast.protocol.topics import STREAM_TOPICS, Stream
from tbvast.service.clock import calendar
from tbvast.settings.loader import read_file
from tbvast.stix.documents import STIX_ID
from tbvast.stix.indicators import decode_indicator, make_indicator, removal
from tbvast.stix.observables import guess
from tbvast.values import HostPort
from tbvast.zeromq.sockets import Factory, SocketOptions

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 2**20
"""
The maximum number and size of the documents in one request, unless a single one is longer.
"""

PUBLISH_TIMEOUT_SECONDS = 60.0
"""
Time limit for the bus to commit a batch.
"""

ACCEPT_TIMEOUT_SECONDS, RETRY_SECONDS = 5.0, 0.05
LINGER_MILLISECONDS = 5000
"""
Time limit for a Threat Bus to accept the next document, the interval at which it is sent again
until then, and the time limit for the last documents.
"""

NOT_SENT = "not sent"
SENT = "sent"
REFUSED = "refused"
UNKNOWN = "unknown"
OUTDATED = "outdated"
ACCEPTED = "accepted"
REMOVED_BEFORE = "removed before"
REPEATED = "repeated"

_PROBLEMS = {
    REFUSED: "refused by the bus",
    UNKNOWN: "not known to the bus, so that there is nothing to remove",
    OUTDATED: "not taken by the bus",
}


@attrs.define(eq=False)
class Tally:
    """
    The outcomes of documents.

    @param good: The outcomes that count as success.
    @param words: The words for outcomes that are not called by their names.
    @ivar lines: For each unsuccessful document, a line that begins with its location; at first
        for those that are refused before they are sent.
    @ivar outcomes: The number of documents with each outcome.
    """

    _good: Collection[str]
    _words: Mapping[str, str] = attrs.field(factory=dict)
    lines: list[str] = attrs.field(factory=list)
    outcomes: Counter[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.outcomes = Counter({REFUSED: len(self.lines)})

    def count(self, submission: Submission, outcome: str, reason: str = "") -> None:
        """
        Count a document.

        @param outcome: Its outcome, as the bus names it.
        @param reason: The reason that the bus gives; may be empty.
        """
        self.outcomes[outcome] += 1
        if outcome not in self._good:
            end = f": {reason}" if reason else ""
            self.lines.append(f"{submission.label}: {_PROBLEMS.get(outcome, outcome)}{end}")

    @property
    def successful(self) -> bool:
        """
        Whether every document was successful.
        """
        return all(outcome in self._good for outcome in +self.outcomes)

    def __str__(self) -> str:
        total = self.outcomes.total()
        if not total:
            return "0 indicators"
        counted = ", ".join(
            f"{count} {self._words.get(outcome, outcome)}"
            for outcome, count in (+self.outcomes).items()
        )
        return f"{total} indicator{'' if total == 1 else 's'}: {counted}"


def split_batches(submissions: Iterable[Submission]) -> Iterator[list[Submission]]:
    """
    Split submissions into batches, each for one request.
    """
    batch: list[Submission] = []
    size = 0
    for submission in submissions:
        length = len(submission.document) + 1
        if batch and (len(batch) == MAX_BATCH_DOCUMENTS or size + length > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(submission)
        size += length
    if batch:
        yield batch


def read_inputs(names: Sequence[str], now: datetime) -> InputContents:
    """
    Read input files.

    @param names: Their paths; C{-} is standard input.
    @param now: The version of the indicators made of observables.
    @raise SettingsInvalid: If one cannot be read.
    """
    contents = InputContents()
    for name in names:
        if name == "-":
            contents.read("standard input", sys.stdin.buffer.read(), now)
        else:
            contents.read(name, read_file(name, "FILE"), now)
    return contents


def make_removals(names: Sequence[str], now: datetime) -> list[Submission]:
    """
    Make removals of indicators.

    @param names: Ids of indicators, or observables of which C{publish} makes indicators.
    @param now: The version of the removals.
    @raise SettingsInvalid: If a name is neither an id nor an observable.
    """
    submissions = []
    for name in names:
        id = name
        match = STIX_ID.fullmatch(name)
        if match is None:
            try:
                observable = guess(name)
            except ObservableInvalid as e:
                raise SettingsInvalid("ID", name, "indicator--UUID, or an observable") from e
            id = decode_indicator(make_indicator(observable, now=now, source=SOURCE)).id
        elif match[1] != "indicator":
            raise SettingsInvalid("ID", name, "the id of an indicator: indicator--UUID")
        submissions.append(Submission(name, removal(id, now), id, removes=True))
    return submissions


def summary_lines(tally: Tally, contents: InputContents) -> Iterator[str]:
    """
    The lines that C{publish} writes at the end.
    """
    yield str(tally)
    if contents.ignored:
        types = ", ".join(f"{count} {type}" for type, count in sorted(contents.ignored.items()))
        yield f"{contents.ignored.total()} other objects ignored: {types}"
    if contents.unmatchable:
        count = contents.unmatchable.total()
        yield f"{count} of the indicators cannot be matched by tbvast-bridge:"
        for reason, count in contents.unmatchable.most_common():
            yield f"  {count} for {reason}"


async def publish(
    reactor: Any, screen: Screen, bus: HostPort, keys: KeyFiles, files: Sequence[str]
) -> bool:
    """
    Publish the indicators of files.

    @param bus: The manage endpoint of the bus.
    @param keys: The keys for the connection.
    @param files: Paths; C{-} is standard input.
    @return: Whether every indicator was successful.
    @raise SettingsInvalid: If a file cannot be read, or only one key is given.
    @raise KeyUnusable: If a key cannot be used.
    @raise BusUnreachable: If the bus does not answer.
    @raise BusRefused: If the bus accepts no indicators.
    """
    options = keys.load()
    contents = read_inputs(files, _now())
    good = ACCEPTED, REPEATED, REMOVED_BEFORE, SENT
    tally = Tally(good, {REPEATED: "repeated (in force already)"}, contents.refused)
    return await _send_and_report(
        reactor, screen, bus, options, contents, tally, allow_unacknowledged=True
    )


async def remove(
    reactor: Any, screen: Screen, bus: HostPort, keys: KeyFiles, names: Sequence[str]
) -> bool:
    """
    Remove indicators. The bus, its keys and the errors about them are as for L{publish}.

    @param names: Ids of indicators, or published observables.
    @return: Whether every indicator is removed.
    @raise SettingsInvalid: If a name is neither an id nor an observable.
    @raise BusRefused: If the bus knows no removals.
    """
    options = keys.load()
    contents = InputContents(make_removals(names, _now()))
    tally = Tally((ACCEPTED, REMOVED_BEFORE), {ACCEPTED: "removed"})
    return await _send_and_report(
        reactor, screen, bus, options, contents, tally, allow_unacknowledged=False
    )


def _now() -> datetime:
    return datetime.fromtimestamp(calendar(), UTC)


async def _send_and_report(
    reactor: Any,
    screen: Screen,
    bus: HostPort,
    keys: SocketOptions,
    contents: InputContents,
    tally: Tally,
    allow_unacknowledged: bool,
) -> bool:
    """
    @param tally: Counts every document; those left over after an error as not sent.
    @param allow_unacknowledged: Whether a Threat Bus may get them, which acknowledges nothing.
    @return: Whether every document was successful.
    """
    submissions = contents.submissions
    counted = tally.outcomes.total()
    factory = Factory(reactor, linger=0)
    client = ManageClient(reactor, factory, bus, keys)
    try:
        if submissions:
            acknowledges = await ask_status(client) is not None
            if not acknowledges and not allow_unacknowledged:
                raise BusRefused("remove", f"{bus} is a Threat Bus, which knows no such request")
            with screen.progress(str(bus), len(submissions)) as advance:
                if acknowledges:
                    outcomes = _publish_batches(client, submissions)
                else:
                    screen.write_error(
                        f"{bus} is a Threat Bus: it does not say whether it accepts indicators"
                    )
                    address = HostPort(bus.host, await _sub_port(client))
                    outcomes = _send_unacknowledged(reactor, address, keys, submissions)
                async for submission, outcome, reason in outcomes:
                    tally.count(submission, outcome, reason)
                    advance(1)
    finally:
        tally.outcomes[NOT_SENT] += len(submissions) - (tally.outcomes.total() - counted)
        factory.shutdown()
        for line in tally.lines:
            screen.write_error(line)
        for line in summary_lines(tally, contents):
            screen.write_line(line)
    return tally.successful


_Outcomes = AsyncIterator[tuple[Submission, str, str]]
"""
The outcome and its reason, for each document that was handled.
"""


async def _publish_batches(client: ManageClient, submissions: Sequence[Submission]) -> _Outcomes:
    for batch in split_batches(submissions):
        request = manage.encode_publish([submission.document for submission in batch])
        published = await client.request(
            "publish", request, manage.decode_published, PUBLISH_TIMEOUT_SECONDS
        )
        if len(published.outcomes) != len(batch):
            raise BusRefused("publish", "its reply is about other documents")
        for position, submission in enumerate(batch):
            outcome = published.outcomes[position]
            if submission.removes and outcome == REPEATED:
                outcome = REMOVED_BEFORE
            yield submission, outcome, published.reasons.get(position, "")


async def _send_unacknowledged(
    reactor: Any, address: HostPort, keys: SocketOptions, submissions: Sequence[Submission]
) -> _Outcomes:
    factory = Factory(reactor, LINGER_MILLISECONDS)
    try:
        publisher = ReportPublisher(factory, f"tcp://{address}", lambda: None, keys)
        for submission in submissions:
            frame = INDICATOR_TOPIC + b" " + submission.document
            deadline = reactor.seconds() + ACCEPT_TIMEOUT_SECONDS
            while not publisher.send(frame):
                if reactor.seconds() > deadline:
                    raise BusUnreachable(str(address), ACCEPT_TIMEOUT_SECONDS)
                await deferLater(reactor, RETRY_SECONDS)
            yield submission, SENT, ""
    finally:
        factory.shutdown()


async def _sub_port(client: ManageClient) -> int:
    """
    The port of the bus's sub endpoint, which only the reply to a subscribe request has.
    """
    topics = STREAM_TOPICS[Stream.SIGHTING][:1]
    request = manage.encode_subscribe(topics, 0, "tbvast publish")
    subscribed = await client.request("subscribe", request, manage.decode_subscribed)
    await client.ask(manage.encode_unsubscribe(subscribed.topic))
    return subscribed.sub_port
