"""
The manage endpoint: every request gets a reply.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from tbvast.bus.access_control import TO_SUBSCRIBE, AccessControl
from tbvast.bus.client_work import ClientWork, Steps
from tbvast.bus.ingest import Intake
from tbvast.bus.statistics import Statistics
from tbvast.bus.subscription import BusParts
from tbvast.bus.subscriptions import Subscriptions, make_subscription
from tbvast.bus.unread_answers import LONG_ANSWER, UnreadAnswers
from tbvast.errors import Invalid, JournalFailed, LimitExceeded
from tbvast.protocol import manage
from tbvast.protocol.damaged_json import RequestUnsplittable
from tbvast.protocol.topics import streams_of
from tbvast.service.rate_limit import RateLimit
from tbvast.settings.schema import PluginSettings

AT_ONCE_BYTES = 1 << 16
"""
The longest request that is decoded when it arrives, if it is well-formed.
"""

REQUEST_BYTES = 4096
"""
The bytes that a request takes in memory besides its own, about.
"""


@attrs.define(eq=False, slots=False)
class ManageEndpoint:
    """
    Answers requests. A request that fails is answered with an error.

    The requests that are being answered have a limit for each client, and one for all; those
    beyond it are refused. A client that has none is always answered. The requests of one peer are
    decided in order: it may have nothing else to tell the replies apart by.

    @param parts: The parts of the bus that subscriptions use.
    @param work: Decodes requests.
    @param access: Decides who may do what.
    @param unread: The answers that clients have not read. One that has too many gets no other long
        one.
    """

    _log = Logger()

    _parts: BusParts
    _work: ClientWork
    _access: AccessControl
    _subscriptions: Subscriptions
    _intake: Intake
    _statistics: Statistics
    _unread: UnreadAnswers

    def __attrs_post_init__(self) -> None:
        settings = self._parts.settings
        self._complaints = RateLimit(self._parts.clock, settings.errors_per_minute)
        self._under_way: Counter[str] = Counter()
        self._under_way_in_all = 0
        self._undecided: Counter[bytes] = Counter()

    def answer(self, frames: Sequence[bytes], user: str = "", peer: bytes = b"") -> Deferred[bytes]:
        """
        @param frames: The request, without the peer's routing frames.
        @param user: The user who asks, as the access control knows it.
        @param peer: Identifies the peer's connection.
        @return: Fires with the reply; never fails, because a REQ peer waits for it.
        """
        return Deferred.fromCoroutine(self._answer(b"".join(frames), user, peer))

    async def _answer(self, raw: bytes, user: str, peer: bytes) -> bytes:
        size = len(raw) + REQUEST_BYTES
        self._count_under_way(user, size)
        try:
            reply = await self._dispatch(raw, user, peer)
            if len(reply) > LONG_ANSWER:
                self._unread.check(user)
            return reply
        except JournalFailed as e:
            return manage.refused(str(e))
        except Invalid as e:
            refusal = self._refuse(e)
            return refusal if isinstance(e, RequestUnsplittable | LimitExceeded) else manage.ERROR
        except Exception:
            self._log.failure("Cannot answer a request")
            return manage.ERROR
        finally:
            self._count_under_way(user, -size)

    def _count_under_way(self, user: str, size: int) -> None:
        self._under_way_in_all += size
        self._under_way[user] += size
        if not self._under_way[user]:
            del self._under_way[user]

    def _check_under_way(self, user: str, size: int) -> None:
        """
        @param size: The size of the request that is about to wait.
        @raise LimitExceeded: If too much is under way already.
        """
        settings, others = self._parts.settings, self._under_way[user] - size - REQUEST_BYTES
        if others and self._under_way[user] > settings.max_client_request_bytes:
            limit = f"at most {settings.max_client_request_bytes} bytes for one client"
            raise LimitExceeded("requests", self._under_way[user], limit)
        if others and self._under_way_in_all > settings.max_total_request_bytes:
            limit = f"at most {settings.max_total_request_bytes} bytes for all clients"
            raise LimitExceeded("requests", self._under_way_in_all, limit)

    async def _dispatch(self, raw: bytes, user: str, peer: bytes) -> bytes:
        if not self._access.may_connect(user):  # it was allowed to when it connected
            return self._forbidden(user, "ask for anything")
        longest = self._parts.settings.max_message_bytes
        if len(raw) > longest:
            raise LimitExceeded("request", len(raw), f"at most {longest} bytes")
        work = self._decide(raw, user)
        if len(raw) <= AT_ONCE_BYTES and not self._undecided[peer]:
            try:
                next(work)
            except StopIteration as e:
                decided: Deferred[bytes] = e.value
                return await decided
        self._check_under_way(user, len(raw))
        self._undecided[peer] += 1
        return await self._work.do(user, self._in_order(work, peer))

    def _in_order(self, work: Steps[Deferred[bytes]], peer: bytes) -> Steps[Deferred[bytes]]:
        try:
            return (yield from work)
        finally:
            self._undecided -= Counter([peer])

    def _decide(self, raw: bytes, user: str) -> Steps[Deferred[bytes]]:
        request = yield from manage.decode_request(raw, self._parts.settings.max_documents)
        match request:
            case manage.Publish(documents):
                self._unread.check(user)
                published = yield from self._intake.publish(documents, user)
                return published.addCallback(_encode_published)
            case manage.Status():
                self._unread.check(user)
                self._check_under_way(user, len(raw))
                return self._statistics.report()
        return succeed(self._reply(request, user))

    def _reply(self, request: manage.ShortRequest, user: str) -> bytes:
        match request:
            case manage.Heartbeat(topic, report):
                known = self._owns(user, topic) and self._subscriptions.heartbeat(topic, report)
                return manage.SUCCESS if known else manage.ERROR
            case manage.Subscribe():
                return self._subscribe(request, user)
            case manage.Unsubscribe(topic, dialect):
                known = self._owns(user, topic) and self._subscriptions.close(topic)
                return manage.unsubscribed(dialect, known)
            case manage.Unknown(dialect):
                return manage.unknown_request(dialect)

    def _owns(self, user: str, topic: str) -> bool:
        return self._subscriptions.is_of(topic, self._access.key(user))

    def _refuse(self, error: Invalid) -> bytes:
        self._statistics.count("request", "refused")
        self._complaints.warn(self._log, "Refused a request: {reason}", reason=str(error))
        return manage.refused(str(error))

    def _forbidden(self, user: str, what: str) -> bytes:
        self._statistics.count("request", "forbidden")
        client = self._access.name(user) or "somebody"
        self._complaints.warn(self._log, "{client} may not {what}.", client=client, what=what)
        return manage.refused(f"you may not {what}")

    def _subscribe(self, request: manage.Subscribe, user: str) -> bytes:
        self._subscriptions.check_topics(request)  # before anything is done for each of them
        for stream in streams_of(request.topics):
            if not self._access.may(user, TO_SUBSCRIBE[stream]):
                return self._forbidden(user, f"subscribe to {stream.value.decode()}s")
        most = self._parts.settings.max_snapshot_days
        if request.snapshot > most:
            raise LimitExceeded("snapshot", request.snapshot, f"at most {most} days")
        subscription = make_subscription(self._parts, request, user)
        self._subscriptions.open(subscription)
        self._parts.begin_snapshot(subscription)
        settings = self._parts.settings
        host, topic = advertised_host(settings), subscription.topic
        return manage.subscribed(topic, host, settings.pub, settings.sub, subscription.beginning)


def advertised_host(settings: PluginSettings) -> str:
    """
    The host that subscribers are told to connect to: never a wildcard.
    """
    if settings.advertise:
        return settings.advertise
    if settings.host in ("0.0.0.0", "::"):
        return socket.getfqdn()
    return settings.host


def _encode_published(published: manage.Published) -> bytes:
    return manage.encode_published(published.outcomes, published.reasons)
