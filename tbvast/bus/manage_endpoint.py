"""
The manage endpoint: every request gets a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.access_control import TO_SUBSCRIBE, AccessControl
from tbvast.bus.ingest import Intake
from tbvast.bus.journal.values import Outcome, Verdict
from tbvast.bus.replayed_subscription import ReplayedSubscription
from tbvast.bus.snapshots import Snapshots
from tbvast.bus.statistics import Statistics
from tbvast.bus.subscriptions import Subscriptions
from tbvast.errors import Invalid, JournalFailed
from tbvast.interfaces import IJournal
from tbvast.protocol import manage
from tbvast.protocol.publish_request import RequestUnsplittable
from tbvast.protocol.topics import streams_of
from tbvast.service.rate_limit import RateLimit
from tbvast.values import Position


class Addresses(msgspec.Struct, frozen=True):
    """
    The addresses that a subscriber is told to connect to.

    @ivar host: A host that it can reach.
    @ivar pub: The port of the pub endpoint.
    @ivar sub: The port of the sub endpoint.
    """

    host: str
    pub: int
    sub: int


class ManageEndpoint:
    """
    Answers requests. A request that fails is answered with an error.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        addresses: Addresses,
        access: AccessControl,
        journal: IJournal,
        subscriptions: Subscriptions,
        snapshots: Snapshots,
        intake: Intake,
        statistics: Statistics,
        max_snapshot_days: int,
        errors_per_minute: int,
    ) -> None:
        """
        @param access: Decides who may do what.
        @param max_snapshot_days: The most days of a snapshot.
        @param errors_per_minute: The most log lines a minute about refused requests.
        """
        self._addresses = addresses
        self._access = access
        self._journal = journal
        self._subscriptions = subscriptions
        self._snapshots = snapshots
        self._intake = intake
        self._statistics = statistics
        self._max_snapshot_days = max_snapshot_days
        self._complaints = RateLimit(clock, errors_per_minute)

    def answer(self, frames: Sequence[bytes], user: str = "") -> Deferred[bytes]:
        """
        @param frames: The request, without the peer's routing frames.
        @param user: The user who asks, as the access control knows it.
        @return: Fires with the reply; never fails, because a REQ peer waits for it.
        """
        answer: Deferred[bytes] = maybeDeferred(self._dispatch, b"".join(frames), user)
        return answer.addErrback(self._eb_error)

    def _eb_error(self, failure: Failure) -> bytes:
        failed = _journal_failure(failure)
        if failed is not None:
            return manage.refused(str(failed))
        if failure.check(Invalid):
            self._statistics.count("request", "refused")
            if self._complaints.allows():
                self._log.warn("Refused a request: {reason}", reason=str(failure.value))
            if failure.check(RequestUnsplittable):
                return manage.refused(str(failure.value))
        else:
            self._log.failure("Cannot answer a request", failure)
        return manage.ERROR

    def _dispatch(self, raw: bytes, user: str) -> Any:
        if not self._access.may_connect(user):  # it was allowed to when it connected
            return self._forbidden(user, "ask for anything")
        request = manage.decode_request(raw)
        if isinstance(request, manage.Heartbeat):
            known = self._subscriptions.heartbeat(request.topic, request.report)
            return manage.SUCCESS if known else manage.ERROR
        if isinstance(request, manage.Subscribe):
            return self._subscribe(request, user)
        if isinstance(request, manage.Unsubscribe):
            known = self._subscriptions.close(request.topic)
            return manage.unsubscribed(request.dialect, known)
        if isinstance(request, manage.Publish):
            return self._intake.publish(request.documents, user).addCallback(_published)
        if isinstance(request, manage.Status):
            return self._statistics.report().addCallback(msgspec.json.encode)
        return manage.unknown_request(request.dialect)

    def _forbidden(self, user: str, what: str) -> bytes:
        self._statistics.count("request", "forbidden")
        if self._complaints.allows():
            self._log.warn(
                "{client} may not {what}.", client=self._access.name(user) or "somebody", what=what
            )
        return manage.refused(f"you may not {what}")

    def _subscribe(self, request: manage.Subscribe, user: str) -> bytes:
        for stream in streams_of(request.topics):
            if not self._access.may(user, TO_SUBSCRIBE[stream]):
                return self._forbidden(user, f"subscribe to {stream.value.decode()}s")
        subscription = self._subscriptions.open(request, user)
        days: int | None = min(request.snapshot, self._max_snapshot_days)
        beginning = None
        if isinstance(subscription, ReplayedSubscription):
            if request.resume is not None:
                # It gets either exactly the entries that it missed, or everything anew.
                days = 0 if subscription.resumed else None
            beginning = Position(self._journal.identity, subscription.position)
        if days is None or days:
            self._snapshots.deliver(subscription, days)
        return manage.subscribed(
            subscription.topic,
            self._addresses.host,
            self._addresses.pub,
            self._addresses.sub,
            beginning,
        )


def _journal_failure(failure: Failure) -> JournalFailed | None:
    """
    @return: The journal's failure, if that is the cause.
    """
    error = failure.value
    return error if isinstance(error, JournalFailed) else None


def _reason(result: Outcome | Invalid) -> str:
    if not isinstance(result, Outcome):
        return str(result)
    set_aside = result.verdict is Verdict.REFUSED and not result.reason
    return "it could not be kept, and was set aside" if set_aside else result.reason


def _published(results: list[Outcome | Invalid]) -> bytes:
    return manage.encode_published(
        [r.verdict if isinstance(r, Outcome) else Verdict.REFUSED for r in results],
        {i: reason for i, r in enumerate(results) if (reason := _reason(r))},
    )
