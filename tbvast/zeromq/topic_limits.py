"""
The topics that peers have subscribed their ZeroMQ sockets to.

ZeroMQ remembers all of them, also those that the peers do not get, and needs up to some hundred
bytes of memory for each byte.
"""

from __future__ import annotations

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


@attrs.define(eq=False)
class _Holder:
    """
    The topics of one connection, or of all those that cannot be told apart.

    @ivar connection: The connection; C{None} if it is unknown.
    @ivar size: The bytes that the topics count for.
    """

    connection: IPeerConnection | None
    _topics: set[bytes] = attrs.field(init=False, factory=set)
    size: int = attrs.field(init=False, default=0)

    def __len__(self) -> int:
        return len(self._topics)

    def add(self, topic: bytes) -> int:
        """
        @return: The bytes by which the topics have grown.
        """
        if topic in self._topics:
            return 0
        self._topics.add(topic)
        self.size += (added := BYTES_PER_TOPIC + len(topic))
        return added

    def remove(self, topic: bytes) -> int:
        """
        @return: The bytes by which the topics have shrunk.
        """
        if topic not in self._topics:
            return 0
        self._topics.remove(topic)
        self.size -= (removed := BYTES_PER_TOPIC + len(topic))
        return removed


@attrs.define(eq=False)
class TopicLimits:
    """
    Finds the connections that have subscribed to too many topics.

    @param most: The most topics of one connection.
    """

    _most: int
    _holders: dict[str, _Holder] = attrs.field(init=False, factory=dict)
    _size: int = attrs.field(init=False, default=0)
    _tidy_at: int = attrs.field(init=False, default=16)

    def begun(self, name: str, connection: IPeerConnection | None, topic: bytes) -> str | None:
        """
        A subscription has begun.

        @param name: The name of the connection until that is gone; empty if it is unknown.
        @return: The name of a connection that has too many topics, which are forgotten, because it
            has to end; C{None} if there is none.
        """
        holder = self._holders.get(name)
        if holder is None or (holder.connection and holder.connection.gone):
            self._tidy()
            self._forget(name)
            holder = self._holders[name] = _Holder(connection)
        self._size += holder.add(topic)
        if len(holder) <= self._most and holder.size <= 2 * BYTES_PER_TOPIC * self._most:
            if self._size <= TOTAL_BYTES:
                return None
            name = max(self._holders, key=lambda name: self._holders[name].size)
        self._forget(name)
        return name

    def ended(self, name: str, topic: bytes) -> None:
        """
        A subscription has ended.
        """
        if name in self._holders:
            self._size -= self._holders[name].remove(topic)

    def _forget(self, name: str) -> None:
        holder = self._holders.pop(name, None)
        self._size -= holder.size if holder else 0

    def _tidy(self) -> None:
        """
        Forget the connections that are gone, when there may be as many as others.
        """
        if len(self._holders) >= self._tidy_at:
            for name, holder in list(self._holders.items()):
                if holder.connection and holder.connection.gone:
                    self._forget(name)
            self._tidy_at = 2 * len(self._holders) + 16
