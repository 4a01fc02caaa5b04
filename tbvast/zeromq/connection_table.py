"""
The connections to a service's endpoints, and which of them end when there are too many.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tbvast.interfaces import ICounters, IPeerConnection
from tbvast.service.rate_limit import RateLimit
from tbvast.zeromq.receive_limits import ReceiveLimits

SILENCE_LIMIT = 30.0
"""
Seconds after which a connection ends that has said nothing, on an endpoint where clients speak
first.
"""

GRACE_SECONDS = 2.0
"""
Seconds in which a new connection may begin to speak before it makes room for another one.
"""

REFUSALS_PER_SECOND = 50
"""
The most connections of one address that are refused in a second. Its further attempts wait.
"""

RESERVED_SHARE = 8
"""
One connection in so many is reserved for addresses that are known.
"""

SPARED_SILENT = 16
"""
The silent connections to an endpoint that an address may have, however few are allowed there.
"""

_CANDIDATES = 64
_KNOWN_ADDRESSES = 10_000

Key = tuple[str, int]
"""
The endpoint of a connection, and its descriptor.
"""


@attrs.define(eq=False)
class _Entry:
    """
    @ivar address: The address whose connections count together.
    @ivar since: When it was accepted.
    """

    key: Key
    connection: IPeerConnection
    address: str
    since: float


@attrs.define(eq=False)
class _Crowd:
    """
    The connections of one address.

    @ivar silent: Those that have not said anything; the oldest first.
    @ivar speaking: The others; the one that was heard last is the last.
    """

    silent: dict[Key, _Entry] = attrs.field(init=False, factory=dict)
    speaking: dict[Key, _Entry] = attrs.field(init=False, factory=dict)

    def __len__(self) -> int:
        return len(self.silent) + len(self.speaking)


@attrs.define(eq=False)
class _SilentAt:
    """
    The connections to one endpoint that have not said anything that counts.

    @ivar limit: How many there may be, and may be ended at a time.
    @ivar rest: How many may still be ended this time.
    @ivar count: How many there are.
    @ivar by_address: How many there are of each address.
    """

    limit: float = math.inf
    rest: float = math.inf
    count: int = 0
    by_address: Counter[str] = attrs.field(init=False, factory=Counter)

    def add(self, address: str, by: int) -> None:
        """
        @param by: 1, or -1.
        """
        self.count += by
        self.by_address[address] += by
        if not self.by_address[address]:
            del self.by_address[address]

    def excessive(self) -> str | None:
        """
        @return: The address that has to lose one, if there are too many.
        """
        if self.count <= self.limit:
            return None
        address, count = self.by_address.most_common(1)[0]
        return address if count > SPARED_SILENT else None


@attrs.define(eq=False)
class ConnectionTable:
    """
    Counts connections in all and by address, and ends some when there are too many.

    An address that has its most connections, or more than any other address while all are used,
    loses the one that has been silent for longest. One that has not said anything goes first. An
    address cannot end connections of others that have no more than itself, nor those of its own
    that have spoken: then its new one is refused.

    @param limit: The most connections; some of them are reserved for addresses that are known.
    @param address_limit: The most connections of one address.
    @param quiet: The endpoints on which a client may be silent for ever.
    @ivar counters: Counts C{connection}s: C{accepted}, C{refused}, C{silent},
        C{unfinished}, C{topics} and C{oversized}.
    @param complaints: Limits the log lines.
    """

    _log = Logger()

    _clock: IReactorTime
    _limit: int
    _address_limit: int
    _quiet: Collection[str]
    counters: ICounters
    _complaints: RateLimit

    _entries: dict[Key, _Entry] = attrs.field(init=False, factory=dict)
    _crowds: dict[str, _Crowd] = attrs.field(init=False, factory=dict)
    _silent: dict[Key, _Entry] = attrs.field(init=False, factory=dict)
    _silent_at: dict[str, _SilentAt] = attrs.field(init=False, factory=dict)
    _known: dict[str, None] = attrs.field(init=False, factory=dict)
    _refusals: Counter[str] = attrs.field(init=False, factory=Counter)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def limit(self) -> int:
        """
        The most connections.
        """
        return self._limit

    @property
    def held_off(self) -> frozenset[str]:
        """
        The addresses whose attempts to connect have to wait until the next L{sweep}.
        """
        return frozenset(
            address for address, count in self._refusals.items() if count >= REFUSALS_PER_SECOND
        )

    def accepted(self, endpoint: str, descriptor: int, connection: IPeerConnection) -> None:
        """
        A connection was accepted.
        """
        key = endpoint, descriptor
        self._remove(key)  # its end was not reported
        entry = _Entry(key, connection, connection.address, self._clock.seconds())
        self._entries[key] = entry
        mine = self._crowds.setdefault(entry.address, _Crowd())
        mine.silent[key] = entry
        if endpoint not in self._quiet:
            self._silent[key] = entry
            self._at(endpoint).add(entry.address, 1)
        self.counters.count("connection", "accepted")
        reserve = 0 if entry.address in self._known else self._limit // RESERVED_SHARE
        if len(mine) > self._address_limit:
            self._make_room(mine, entry)
        elif len(self) > self._limit - reserve:
            self._make_room(max(self._crowds.values(), key=len), entry)
        elif endpoint not in self._quiet:
            self._limit_silent(entry)

    def silent(self, endpoint: str) -> int:
        """
        @return: The connections to an endpoint that have not said anything that counts.
        """
        return self._at(endpoint).count

    def limit_silent(self, endpoint: str, most: int) -> None:
        """
        Limit the connections to an endpoint that have not said anything that counts. Of too many,
        the address with the most loses its newest, though not its last L{SPARED_SILENT}.

        @param most: How many there may be, and may be ended between two calls of L{trim}.
        """
        at = self._at(endpoint)
        at.limit, at.rest = most, min(at.rest, most)

    def trim(self) -> None:
        """
        End silent connections of which there are too many, so many at a time as are allowed.
        """
        for endpoint, each in self._silent_at.items():
            each.rest = each.limit
            while (address := each.excessive()) is not None and each.rest > 0:
                self._refuse_silent(self._newest_silent(endpoint, address))

    def _at(self, endpoint: str) -> _SilentAt:
        return self._silent_at.setdefault(endpoint, _SilentAt())

    def _limit_silent(self, newcomer: _Entry) -> None:
        endpoint = newcomer.key[0]
        at = self._at(endpoint)
        address = at.excessive()
        if address is None:
            return
        if address == newcomer.address:
            self._refusals[address] += 1
        if at.rest > 0:
            self._refuse_silent(self._newest_silent(endpoint, address))

    def _newest_silent(self, endpoint: str, address: str) -> _Entry:
        newest_first = reversed(self._crowds[address].silent.values())
        return next(entry for entry in newest_first if entry.key[0] == endpoint)

    def _refuse_silent(self, victim: _Entry) -> None:
        self._at(victim.key[0]).rest -= 1
        self._end(victim, "refused")
        text = "Ended a connection from {address} to {endpoint}: too many there have said nothing."
        self._complaints.warn(self._log, text, address=victim.address, endpoint=victim.key[0])

    def ended(self, endpoint: str, descriptor: int) -> None:
        """
        A connection was closed.
        """
        self._remove((endpoint, descriptor))

    def unfinished(self, endpoint: str) -> None:
        """
        A client did not finish the handshake, or failed.
        """
        self.counters.count("connection", "unfinished")
        text = "A client of {endpoint} did not finish the handshake."
        self._complaints.warn(self._log, text, endpoint=endpoint)

    def cut_off(self, endpoint: str) -> None:
        """
        ZeroMQ has closed a connection whose client was still sending.
        """
        self.counters.count("connection", "oversized")
        text = "Disconnected a client of {endpoint}: its message is too long, or malformed."
        self._complaints.warn(self._log, text, endpoint=endpoint)

    def end_oversized(self, endpoint: str, descriptor: int) -> None:
        """
        End a connection that holds too much memory.
        """
        self._end_sender(endpoint, descriptor, "too much of its messages waits")

    def end_overlong(self, endpoint: str, descriptor: int | None) -> None:
        """
        End a connection that has sent a message of too many frames.

        @param descriptor: C{None} if it is unknown; then the connection goes on without the
            message.
        """
        if descriptor is not None:
            self._end_sender(endpoint, descriptor, "its message has too many frames")
            return
        self.counters.count("connection", "oversized")
        text = "Dropped a message of a client of {endpoint}: it has too many frames."
        self._complaints.warn(self._log, text, endpoint=endpoint)

    def _end_sender(self, endpoint: str, descriptor: int, reason: str) -> None:
        entry = self._entries.get((endpoint, descriptor))
        if entry is not None:
            self._end(entry, "oversized")
            text = "Disconnected a client of {endpoint}, {address}: {reason}."
            self._complaints.warn(
                self._log, text, endpoint=endpoint, address=entry.address, reason=reason
            )

    def heard(self, endpoint: str, descriptor: int, vouched: bool) -> None:
        """
        A client has said something.

        @param vouched: Whether it has a listed key, or a subscription; its address is known from
            now on.
        """
        entry = self._entries.get((endpoint, descriptor))
        if entry is None:
            return
        self._mark_heard(entry)
        if vouched:
            self._known.pop(entry.address, None)
            self._known[entry.address] = None
            if len(self._known) > _KNOWN_ADDRESSES:
                del self._known[next(iter(self._known))]

    def end_silent(self, endpoint: str) -> None:
        """
        End the connections to an endpoint that have said nothing that counts.
        """
        for entry in [each for each in self._silent.values() if each.key[0] == endpoint]:
            self._end(entry, "silent")

    def sweep(self) -> None:
        """
        End the connections that have been silent for too long. To be called every second.
        """
        self._refusals.clear()
        latest = self._clock.seconds() - SILENCE_LIMIT
        silent = []
        for entry in itertools.takewhile(lambda e: e.since <= latest, self._silent.values()):
            if self._at(entry.key[0]).rest > 0:
                self._at(entry.key[0]).rest -= 1
                silent.append(entry)
        for entry in silent:
            self._end(entry, "silent")
        if silent:
            text = "Ended {count} connections that said nothing for {seconds:.0f} s."
            self._complaints.warn(self._log, text, count=len(silent), seconds=SILENCE_LIMIT)

    def _make_room(self, crowd: _Crowd, newcomer: _Entry) -> None:
        """
        @param crowd: The connections of the address that loses one.
        """
        victim = self._silent_longest(crowd, newcomer) or newcomer
        self._end(victim, "refused")
        if victim.address == newcomer.address:
            self._refusals[newcomer.address] += 1
        self._complaints.warn(
            self._log,
            "Ended a connection from {address} to {endpoint}: there are {count} of at most {limit}"
            " connections, {crowd} of at most {most} from there.",
            address=victim.address,
            endpoint=victim.key[0],
            count=len(self) + 1,
            limit=self._limit,
            crowd=len(crowd) + 1,
            most=self._address_limit,
        )

    def _silent_longest(self, crowd: _Crowd, newcomer: _Entry) -> _Entry | None:
        larger = len(crowd) > len(self._crowds[newcomer.address])
        latest = self._clock.seconds() if larger else self._clock.seconds() - GRACE_SECONDS
        for entry in list(itertools.islice(crowd.silent.values(), _CANDIDATES)):
            if entry.since > latest:
                break
            if entry.key[0] in self._quiet and entry.connection.has_spoken():
                self._mark_heard(entry)
            else:
                return entry
        return next(iter(crowd.speaking.values()), None) if larger else None

    def _mark_heard(self, entry: _Entry) -> None:
        self._not_silent(entry)
        crowd = self._crowds[entry.address]
        crowd.silent.pop(entry.key, None)
        crowd.speaking.pop(entry.key, None)
        crowd.speaking[entry.key] = entry

    def _not_silent(self, entry: _Entry) -> None:
        if self._silent.pop(entry.key, None) is not None:
            self._at(entry.key[0]).add(entry.address, -1)

    def _end(self, entry: _Entry, verdict: str) -> None:
        self._remove(entry.key)
        entry.connection.abort()
        self.counters.count("connection", verdict)

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._not_silent(entry)
        crowd = self._crowds[entry.address]
        crowd.silent.pop(key, None)
        crowd.speaking.pop(key, None)
        if not crowd:
            del self._crowds[entry.address]


@attrs.frozen
class EndpointConnections:
    """
    The connections to one endpoint. A descriptor is that of a client's connection, as
    L{tbvast.values.Received} has it.

    @param endpoint: Its name.
    @param vouched: Whether only clients that are known are heard there.
    @param limits: The limits of the bytes that ZeroMQ holds for it.
    """

    _table: ConnectionTable
    _endpoint: str
    _vouched: bool
    _limits: ReceiveLimits

    def heard(self, descriptor: str) -> None:
        """
        A client has said something that counts.
        """
        if descriptor:
            self._table.heard(self._endpoint, int(descriptor), self._vouched)

    def handed_over(self, descriptor: str, size: int) -> None:
        """
        ZeroMQ has handed over a message of so many bytes.
        """
        if descriptor:
            self._limits.handed_over(int(descriptor), size)

    def caught_up(self, descriptor: str) -> None:
        """
        ZeroMQ has handed over a message that was the last one, or among the last.
        """
        if descriptor:
            self._limits.caught_up(int(descriptor))

    def end_overlong(self, descriptor: str) -> None:
        """
        End the connection of a client that has sent a message of too many frames.
        """
        self._table.end_overlong(self._endpoint, int(descriptor) if descriptor else None)

    @property
    def silent(self) -> int:
        """
        The connections that have not said anything that counts.
        """
        return self._table.silent(self._endpoint)

    def limit_silent(self, most: int) -> None:
        """
        Limit the connections that have not said anything that counts.
        """
        self._table.limit_silent(self._endpoint, most)

    def end_silent(self) -> None:
        """
        End the connections that have said nothing that counts.
        """
        self._table.end_silent(self._endpoint)

    def count(self, verdict: str) -> None:
        """
        Count a connection.
        """
        self._table.counters.count("connection", verdict)
