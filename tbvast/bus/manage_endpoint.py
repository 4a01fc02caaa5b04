"""
The manage endpoint: every request gets a reply.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.access_control import TO_SUBSCRIBE, AccessControl
from tbvast.bus.ingest import Intake
from tbvast.bus.journal.values import Outcome, Verdict
from tbvast.bus.snapshots import Snapshots
from tbvast.bus.statistics import Statistics
from tbvast.bus.subscriptions import Subscriptions
from tbvast.errors import Invalid, JournalFailed
from tbvast.interfaces import ISubscription
from tbvast.protocol import manage
from tbvast.protocol.publish_request import RequestUnsplittable
from tbvast.protocol.topics import streams_of
from tbvast.service.rate_limit import RateLimit
from tbvast.settings.schema import PluginSettings


class ManageEndpoint:
    """
    Answers requests. A request that fails is answered with an error.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: PluginSettings,
        access: AccessControl,
        make: Callable[[manage.Subscribe, str], ISubscription],
        subscriptions: Subscriptions,
        snapshots: Snapshots,
        intake: Intake,
        statistics: Statistics,
    ) -> None:
        """
        @param settings: The addresses that a subscriber is told to connect to, and the most log
            lines a minute about refused requests.
        @param access: Decides who may do what.
        @param make: Makes the subscription that a user asks for.
        """
        self._settings = settings
        self._access = access
        self._make = make
        self._subscriptions = subscriptions
        self._snapshots = snapshots
        self._intake = intake
        self._statistics = statistics
        self._complaints = RateLimit(clock, settings.errors_per_minute)

    def answer(self, frames: Sequence[bytes], user: str = "") -> Deferred[bytes]:
        """
        @param frames: The request, without the peer's routing frames.
        @param user: The user who asks, as the access control knows it.
        @return: Fires with the reply; never fails, because a REQ peer waits for it.
        """
        answer = Deferred.fromCoroutine(self._dispatch(b"".join(frames), user))
        return answer.addErrback(self._eb_error)

    def _eb_error(self, failure: Failure) -> bytes:
        reason = str(failure.value)
        if failure.check(JournalFailed):
            return manage.refused(reason)
        if failure.check(Invalid):
            self._statistics.count("request", "refused")
            self._complaints.warn(self._log, "Refused a request: {reason}", reason=reason)
            if failure.check(RequestUnsplittable):
                return manage.refused(reason)
        else:
            self._log.failure("Cannot answer a request", failure)
        return manage.ERROR

    async def _dispatch(self, raw: bytes, user: str) -> bytes:
        if not self._access.may_connect(user):  # it was allowed to when it connected
            return self._forbidden(user, "ask for anything")
        match manage.decode_request(raw):
            case manage.Heartbeat(topic, report):
                known = self._subscriptions.heartbeat(topic, report)
                return manage.SUCCESS if known else manage.ERROR
            case manage.Subscribe() as request:
                return self._subscribe(request, user)
            case manage.Unsubscribe(topic, dialect):
                return manage.unsubscribed(dialect, self._subscriptions.close(topic))
            case manage.Publish(documents):
                return _published(await self._intake.publish(documents, user))
            case manage.Status():
                return msgspec.json.encode(await self._statistics.report())
            case manage.Unknown(dialect):
                return manage.unknown_request(dialect)

    def _forbidden(self, user: str, what: str) -> bytes:
        self._statistics.count("request", "forbidden")
        client = self._access.name(user) or "somebody"
        self._complaints.warn(self._log, "{client} may not {what}.", client=client, what=what)
        return manage.refused(f"you may not {what}")

    def _subscribe(self, request: manage.Subscribe, user: str) -> bytes:
        for stream in streams_of(request.topics):
            if not self._access.may(user, TO_SUBSCRIBE[stream]):
                return self._forbidden(user, f"subscribe to {stream.value.decode()}s")
        subscription = self._make(request, user)
        self._subscriptions.open(subscription)
        self._snapshots.begin(subscription)
        settings = self._settings
        return manage.subscribed(
            subscription.topic,
            advertised_host(settings),
            settings.pub,
            settings.sub,
            subscription.beginning,
        )


def advertised_host(settings: PluginSettings) -> str:
    """
    The host that subscribers are told to connect to: never a wildcard.
    """
    if settings.advertise:
        return settings.advertise
    if settings.host in ("0.0.0.0", "::"):
        return socket.getfqdn()
    return settings.host


def _published(results: list[Outcome | Invalid]) -> bytes:
    verdicts, reasons = [], {}
    for index, result in enumerate(results):
        match result:
            case Outcome(verdict=verdict, reason=reason):
                if verdict is Verdict.REFUSED and not reason:
                    reason = "it could not be kept, and was set aside"
            case invalid:
                verdict, reason = Verdict.REFUSED, str(invalid)
        verdicts.append(verdict)
        if reason:
            reasons[index] = reason
    return manage.encode_published(verdicts, reasons)
