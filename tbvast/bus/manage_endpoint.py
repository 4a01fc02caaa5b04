"""
The manage endpoint: every request gets a reply.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from tbvast.bus.access_control import TO_SUBSCRIBE, AccessControl
from tbvast.bus.ingest import Intake
from tbvast.bus.journal.values import Outcome, Verdict
from tbvast.bus.statistics import Statistics
from tbvast.bus.subscription import BusParts
from tbvast.bus.subscriptions import Subscriptions, make_subscription
from tbvast.errors import Invalid, JournalFailed, ProtocolInvalid
from tbvast.protocol import manage
from tbvast.protocol.damaged_json import RequestUnsplittable
from tbvast.protocol.topics import streams_of
from tbvast.service.rate_limit import RateLimit
from tbvast.settings.schema import PluginSettings


@attrs.define(eq=False, slots=False)
class ManageEndpoint:
    """
    Answers requests. A request that fails is answered with an error.

    @param parts: The parts of the bus that subscriptions use.
    @param access: Decides who may do what.
    """

    _log = Logger()

    _parts: BusParts
    _access: AccessControl
    _subscriptions: Subscriptions
    _intake: Intake
    _statistics: Statistics

    def __attrs_post_init__(self) -> None:
        settings = self._parts.settings
        self._complaints = RateLimit(self._parts.clock, settings.errors_per_minute)

    def answer(self, frames: Sequence[bytes], user: str = "") -> Deferred[bytes]:
        """
        @param frames: The request, without the peer's routing frames.
        @param user: The user who asks, as the access control knows it.
        @return: Fires with the reply; never fails, because a REQ peer waits for it.
        """
        return Deferred.fromCoroutine(self._answer(b"".join(frames), user))

    async def _answer(self, raw: bytes, user: str) -> bytes:
        try:
            return await self._dispatch(raw, user)
        except JournalFailed as e:
            return manage.refused(str(e))
        except Invalid as e:
            refusal = self._refuse(e)
            return refusal if isinstance(e, RequestUnsplittable) else manage.ERROR
        except Exception:
            self._log.failure("Cannot answer a request")
            return manage.ERROR

    async def _dispatch(self, raw: bytes, user: str) -> bytes:
        if not self._access.may_connect(user):  # it was allowed to when it connected
            return self._forbidden(user, "ask for anything")
        match manage.decode_request(raw):
            case manage.Heartbeat(topic, report):
                known = self._owns(user, topic) and self._subscriptions.heartbeat(topic, report)
                return manage.SUCCESS if known else manage.ERROR
            case manage.Subscribe() as request:
                return self._subscribe(request, user)
            case manage.Unsubscribe(topic, dialect):
                known = self._owns(user, topic) and self._subscriptions.close(topic)
                return manage.unsubscribed(dialect, known)
            case manage.Publish(documents):
                return _published(await self._intake.publish(documents, user))
            case manage.Status():
                return msgspec.json.encode(await self._statistics.report())
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
        for stream in streams_of(request.topics):
            if not self._access.may(user, TO_SUBSCRIBE[stream]):
                return self._forbidden(user, f"subscribe to {stream.value.decode()}s")
        most = self._parts.settings.max_snapshot_days
        if request.snapshot > most:
            return self._refuse(
                ProtocolInvalid("snapshot", request.snapshot, f"at most {most} days")
            )
        subscription = make_subscription(self._parts, request, user)
        try:
            self._subscriptions.open(subscription)
        except ProtocolInvalid as e:
            return self._refuse(e)
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
