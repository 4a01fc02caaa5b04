"""
The topics that peers have subscribed their ZeroMQ sockets to.

ZeroMQ remembers all of them, also those that the peers do not get, and needs up to some hundred
bytes of memory for each byte. Whenever a connection ends, it looks at each byte of all topics,
which takes up to 60 ns a byte; and many connections can end at once.
"""

from __future__ import annotations

from collections import Counter

import attrs

from tbvast.interfaces import IPeerConnection

BYTES_PER_TOPIC = 64
"""
The bytes that a topic counts for besides its own, and the average length that topics may have.
"""

TOTAL_BYTES = 1 << 22
"""
The most bytes that the topics of all connections may count for.
"""

WALK_BYTES = 400_000
"""
The most bytes that ZeroMQ may look at when the connections end that have no topic of their own.
"""

ADDRESS_BYTES = 4096
"""
The bytes of refused topics that an address may have in any case.
"""


@attrs.define(eq=False)
class _Holder:
    """
    The topics of one connection, or of all those that cannot be told apart.

    @ivar connection: The connection; C{None} if it is unknown.
    @ivar topics: Whether each was refused.
    @ivar size: The bytes that the topics count for.
    @ivar refused: The bytes of the topics that were refused.
    """

    connection: IPeerConnection | None
    topics: dict[bytes, bool] = attrs.field(init=False, factory=dict)
    size: int = attrs.field(init=False, default=0)
    refused: int = attrs.field(init=False, default=0)

    @property
    def address(self) -> str:
        """
        The address whose topics count together; empty if it is unknown.
        """
        return self.connection.address if self.connection else ""

    @property
    def gone(self) -> bool:
        """
        Whether the connection has been closed.
        """
        return self.connection is not None and self.connection.gone


@attrs.define(eq=False)
class _Crowd:
    """
    The connections of one address.

    @ivar names: Their names; the latest is the last.
    @ivar size: The bytes that their topics count for.
    @ivar refused: The bytes of their topics that were refused.
    """

    names: dict[str, None] = attrs.field(init=False, factory=dict)
    size: int = attrs.field(init=False, default=0)
    refused: int = attrs.field(init=False, default=0)


@attrs.define(eq=False)
class TopicLimits:
    """
    Finds the connections that have subscribed to too many topics.

    @param most: The most topics of one connection.
    @ivar walk: The bytes that ZeroMQ looks at when a connection ends, at most: those of all topics,
        and once more of those that were not refused.
    """

    _most: int
    walk: int = attrs.field(init=False, default=0)
    _holders: dict[str, _Holder] = attrs.field(init=False, factory=dict)
    _crowds: dict[str, _Crowd] = attrs.field(init=False, factory=dict)
    _counts: Counter[tuple[bytes, bool]] = attrs.field(init=False, factory=Counter)
    """
    The connections that have each topic, and were refused it or not.
    """
    _size: int = attrs.field(init=False, default=0)
    _tidy_at: int = attrs.field(init=False, default=16)

    @property
    def connections(self) -> int:
        """
        The most connections without a topic of their own; at least one.
        """
        return max(1, WALK_BYTES // max(1, self.walk))

    def begun(self, name: str, connection: IPeerConnection | None, topic: bytes) -> bool:
        """
        A subscription has begun.

        @param name: The name of the connection until that is gone; empty if it is unknown.
        @return: Whether the connection has too many topics, which are forgotten, because it has to
            end.
        """
        holder = self._holders.get(name)
        if holder is None or holder.gone:
            if len(self._holders) >= self._tidy_at:
                self.tidy()
            self._forget(name)
            holder = self._holders[name] = _Holder(connection)
            self._crowds.setdefault(holder.address, _Crowd()).names[name] = None
        if topic not in holder.topics:
            self._change(holder, topic, False, 1)
        if len(holder.topics) <= self._most and holder.size <= 2 * BYTES_PER_TOPIC * self._most:
            return False
        self._forget(name)
        return True

    def refused(self, name: str, topic: bytes) -> None:
        """
        A subscription that has begun is not one to a topic of the peer's own.
        """
        holder = self._holders.get(name)
        if holder is not None and holder.topics.get(topic) is False:
            self._change(holder, topic, False, -1)
            self._change(holder, topic, True, 1)

    def ended(self, name: str, topic: bytes) -> None:
        """
        A subscription has ended.
        """
        holder = self._holders.get(name)
        if holder is not None and topic in holder.topics:
            self._change(holder, topic, holder.topics[topic], -1)

    def excess(self, connections: int) -> str | None:
        """
        Find a connection that has to end because the topics of all are too many: of the address
        with the most, the latest.

        @param connections: The connections that have no topic of their own.
        @return: Its name; its topics are forgotten. C{None} if there is none.
        """
        while (name := self._excessive(connections)) is not None:
            gone = self._holders[name].gone
            self._forget(name)
            if not gone:
                return name
        return None

    def _excessive(self, connections: int) -> str | None:
        if self._size > TOTAL_BYTES:
            crowd = max(self._crowds.values(), key=lambda crowd: crowd.size)
            return next(reversed(crowd.names))
        if self.walk * max(1, connections) <= WALK_BYTES:
            return None
        crowd = max(self._crowds.values(), key=lambda crowd: crowd.refused)
        if crowd.refused <= ADDRESS_BYTES:
            return None
        return next(name for name in reversed(crowd.names) if self._holders[name].refused)

    def tidy(self) -> None:
        """
        Forget the connections that are gone.
        """
        for name, holder in list(self._holders.items()):
            if holder.gone:
                self._forget(name)
        self._tidy_at = 2 * len(self._holders) + 16

    def _forget(self, name: str) -> None:
        holder = self._holders.pop(name, None)
        if holder is None:
            return
        for topic, refused in list(holder.topics.items()):
            self._change(holder, topic, refused, -1)
        crowd = self._crowds[holder.address]
        del crowd.names[name]
        if not crowd.names:
            del self._crowds[holder.address]

    def _change(self, holder: _Holder, topic: bytes, refused: bool, by: int) -> None:
        """
        @param by: 1 if the holder has one more topic, -1 if it has one less.
        """
        if by > 0:
            holder.topics[topic] = refused
        else:
            del holder.topics[topic]
        size = by * (BYTES_PER_TOPIC + len(topic))
        crowd = self._crowds[holder.address]
        self._size += size
        for each in (holder, crowd):
            each.size += size
            each.refused += by * len(topic) * refused
        key = topic, refused
        self._counts[key] += by
        if self._counts[key] == (by > 0):  # the first, or the last
            self.walk += by * len(topic) * (1 if refused else 2)
        if not self._counts[key]:
            del self._counts[key]
