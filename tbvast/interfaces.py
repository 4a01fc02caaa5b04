"""
The interfaces between the parts of tbvast.

Unless an interface says otherwise, its methods are called from the reactor's
thread only, and return without blocking.
"""

from __future__ import annotations

from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from tbvast.protocol.frames import Item
from tbvast.protocol.topics import Stream
from tbvast.protocol.unreadable import Unreadable
from tbvast.stix.indicators import Indicator
from tbvast.stix.observables import Observable
from tbvast.stix.sightings import MatchType, Sighting
from tbvast.values import (
    Changes,
    Covered,
    EngineIdentity,
    Entry,
    JsonObject,
    Match,
    PageRequest,
    Position,
    Progress,
    Unsearched,
    WaitingSighting,
)

if TYPE_CHECKING:  # annotations only: importing an interface loads nothing of the bus
    from tbvast.bus.journal.values import JournalEntry, Outcome, Run
    from tbvast.storage.set_aside import SetAside, SetAsideReport


class IEngine(Interface):
    """
    A telemetry engine, with blocking calls: only for worker threads.

    All methods are thread-safe. An engine does not retry: its callers do.
    Every method raises L{tbvast.errors.EngineUnreachable} if the node cannot be
    asked, L{tbvast.errors.EngineTimeout} if it does not finish in time,
    L{tbvast.errors.EngineCallFailed} if it was asked and did not do it,
    L{tbvast.errors.EngineTablesChanged} if it notices that somebody else has changed or
    removed the tables, until L{prepare} is called, and
    L{tbvast.errors.EngineInterrupted} once L{interrupt} has been called.
    """

    cut: Mapping[str, int] = Attribute(
        "A read-only mapping of the numbers of events, by schema, in which L{watch} has found a"
        " list that it did not read to its end. Thread-safe."
    )

    def identify() -> EngineIdentity:
        """
        Identify the node: the cheapest call that proves that it works.

        @raise tbvast.errors.EngineUnsupported: If tbvast does not support the engine or version.
        """

    def prepare() -> None:
        """
        Create everything that the other calls need in the node.

        Idempotent; never empties a table that a running L{watch} uses. Existing entries stay,
        unless somebody else has changed the tables: then they are empty afterwards, and a
        L{watch} has to be started again.
        """

    def add(batches: Iterable[Sequence[Entry]]) -> None:
        """
        Write entries; each replaces the stored entry of the same observable.

        When this returns, the entries are visible to L{watch}.

        For an engine that finds only the longest network prefix of an address, the entry of
        each network must have the ids of all networks that cover it.

        @param batches: The entries. A batch has each observable at most once; later batches
            replace entries of earlier ones. The call begins with the first batch, and waits
            for the next ones, however late. An exception of the iterator ends the call.
        """

    def remove(observables: Sequence[Observable]) -> None:
        """
        Remove entries; missing ones are ignored.
        """

    def contents() -> list[Entry]:
        """
        Read back all entries in the tables of L{watch}, in any order.
        """

    def find(
        entries: Sequence[Entry], limit: int, timeout: float, since: float | None = None
    ) -> Iterator[list[Match]]:
        """
        Search the stored events for entries, in one pass over the data.

        Any thread may close the iterator, which ends the search: a thread that waits for the next
        batch gets L{tbvast.errors.EngineInterrupted} within a second. The time limit ends it with
        L{tbvast.errors.EngineTimeout}, after all matches found so far.

        @param limit: The most events per observable; C{0} is unlimited. An event with several
            joint observables of an indicator is found even if each of them has exceeded the
            limit, which then applies to the combination.
        @param timeout: Seconds for the whole search.
        @param since: The earliest import time of events to find, in seconds since the epoch.
        @return: Batches of matches, as they are found.
        """

    def watch(progress: Callable[[Progress], None]) -> Iterator[list[Match]]:
        """
        Match all events that arrive from now on against the tables as they are then.

        Yields an empty batch when the match runs, then batches of matches, as they are found.
        The match does not end while the engine is healthy. It fails if it has not proved for
        too long that it receives events, and within seconds after somebody else has changed
        the number of entries in a table; it may not notice the loss of the node. Closing the
        iterator ends the match, as for L{find}, and so does L{interrupt}.

        @param progress: Called every few seconds in the iterating thread, after all earlier
            matches were yielded and the next ones requested. An engine that does not know its
            progress calls it once, when the match runs, with default values.
        """

    def interrupt() -> None:
        """
        End every call in progress, in whatever thread, within a second.

        They raise L{tbvast.errors.EngineInterrupted}, as later ones do until L{resume} is called.
        """

    def resume() -> None:
        """
        Allow calls again after L{interrupt}.
        """


class IEngineClient(Interface):
    """
    The same engine, for the reactor's thread. Each method does the same as that of L{IEngine}
    with its name; its C{Deferred} fails with the errors that the latter raises.
    """

    cut: Mapping[str, int] = Attribute("@see: L{IEngine.cut}")

    def identify() -> Deferred[EngineIdentity]: ...

    def prepare() -> Deferred[None]: ...

    def adding() -> IAdding:
        """
        Begin an L{IEngine.add} of entries that arrive in batches.
        """

    def remove(observables: Sequence[Observable]) -> Deferred[None]: ...

    def contents() -> Deferred[list[Entry]]: ...

    def find(
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        deliver: Callable[[list[Match]], Deferred[None] | None],
        since: float | None = None,
    ) -> Deferred[None]:
        """
        @param deliver: Called in the reactor's thread with each batch. The next one is read when
            the C{Deferred} that it returns has fired.
        @return: Fires at the end, with everything delivered. Cancelling it ends the search.
        """

    def watch(
        deliver: Callable[[list[Match]], Deferred[None] | None],
        progress: Callable[[Progress], Deferred[None] | None],
    ) -> Deferred[None]:
        """
        @param deliver: As for L{find}; also called with the first, empty batch.
        @param progress: Called in the reactor's thread after all earlier matches were
            delivered. The match continues when the C{Deferred} that it returns has fired.
        @return: Fires or fails when the match has ended. Cancelling it ends the match.
        """

    def interrupt() -> None: ...

    def resume() -> None: ...


class IAdding(Interface):
    """
    An unfinished L{IEngine.add}: the engine writes batches while further ones are added.
    """

    def add(entries: Sequence[Entry]) -> None:
        """
        Add the next batch of L{IEngine.add}.
        """

    def end() -> Deferred[None]:
        """
        Finish the write; called once, after the last batch.

        @return: Fires when L{IEngineClient.watch} uses all entries; if it fails, it may use any.
        """

    def abandon() -> None:
        """
        Abandon the write, whatever its outcome; instead of L{end}, or before that has fired.
        """


class IJournal(Interface):
    """
    The durable, numbered record of all that a bus has accepted. Each reader has its own pace.

    Every C{Deferred} fails with L{tbvast.errors.JournalFailed} if the disk refuses.
    """

    identity: str = Attribute("A text that no other journal has; made with the journal.")
    head: int = Attribute("The highest number given so far; C{0} if none.")
    floor: int = Attribute("Every entry with a higher number is still there.")

    def append(items: Sequence[Item], publishers: Sequence[Run] = ()) -> Deferred[list[Outcome]]:
        """
        Commit items, in order, in one transaction.

        A repeat, or a version older than the stored one, changes nothing. A version dated
        later than the bus's calendar counts as of its receipt. A removal ends any version,
        whatever its date, unless it repeats an earlier removal; only a later version
        brings the indicator back. An indicator that has expired by the bus's calendar comes
        back with the same version if that is valid after all. An indicator belongs to its
        first publisher; changes by another publisher are refused, unless that one may
        manage indicators of other owners.

        It may be called again before the first call is done. If one fails, so do all later ones
        until the caller has seen that, so that nothing overtakes the items that it appends again.

        @param publishers: The publishers of the items, in order; everybody if not given.
        @return: Fires once the items are durable, with one outcome per item.
        """

    def current(
        after: int, until: int, since: float, limit: int, size: int
    ) -> Deferred[list[tuple[int, bytes]]]:
        """
        Read a page of the indicators that are in force.

        @param after: Only those with a higher number.
        @param until: Only those with this number or a lower one.
        @param since: Only those received at this time or later; seconds since the epoch.
        @param limit: The most to return.
        @param size: Bytes of documents after which no more are returned.
        @return: Fires with numbers and documents, by number.
        """

    def counts() -> Deferred[dict[str, int]]:
        """
        @return: Fires with the numbers of C{indicators} in force and of stored C{sightings}.
        """

    def entries(
        after: int, streams: Collection[Stream], limit: int, size: int
    ) -> Deferred[list[JournalEntry]]:
        """
        Read accepted items, whether they are still in force or not.

        @param after: Only those with a higher number.
        @param streams: Only those of these types.
        @param limit: The most to return.
        @param size: Bytes of documents after which no more are returned.
        @return: Fires with entries, by number; empty if there are no more.
        """

    def pruned(after: int, until: int) -> Deferred[int]:
        """
        Count the entries that the journal has pruned, of all streams.

        @param after: Only those with a higher number.
        @param until: Only those with this number or a lower one; no higher than L{floor}.
        @return: Fires with their number.
        """

    def position(reader: str) -> Deferred[Position | None]:
        """
        @param reader: The name of the reader.
        @return: Fires with its position, in this journal or another bus's; C{None} if it is new.
        """

    def set_position(reader: str, position: Position) -> Deferred[None]:
        """
        Store a reader's position durably.
        """

    def save_subscriptions(changes: dict[str, bytes | None]) -> Deferred[None]:
        """
        Store subscriptions durably, for the next start of the bus.

        @param changes: Their states, by their own topic; C{None} deletes one.
        """

    def set_aside(items: Sequence[SetAside]) -> Deferred[None]:
        """
        Set items aside that could not be handled. Their bytes, the stage of the failure and the
        reason are stored, in bounded number and size. An entry of the journal is then never read
        again; it keeps its number, and expires or is superseded like any other.

        @param items: An entry in force may lack its number; it is then found by its bytes.
        @return: Fires when that is durable.
        """

    def set_aside_report() -> Deferred[SetAsideReport]:
        """
        @return: Fires with the number of set-aside items, and the reason of the newest one.
        """


class IContextTransform(Interface):
    """
    Changes the contexts of sightings before they are reported.
    """

    def transform(event: JsonObject, value: str, match_type: MatchType) -> Deferred[JsonObject]:
        """
        Change the context of one sighting.

        @param event: The event that matched.
        @param value: The observable's value that it matched.
        @return: Fires with the changed context, or with C{event} itself; never fails.
        """


class ISink(Interface):
    """
    Receives the contexts of sightings in place of the bus.
    """

    def send(context: JsonObject, value: str, match_type: MatchType) -> Deferred[None]:
        """
        Send one context.

        @param value: The observable's value that matched.
        @return: Fires once it was accepted. Fails with L{tbvast.errors.CommandRefused} if it
            never can be, and with another L{tbvast.errors.CommandFailed} if it was not this time.
        """


class IBacklog(Interface):
    """
    Sightings that wait for their receiver, each with a key of the backlog's choice. Every call
    fails with the error of their store.
    """

    def page(request: PageRequest) -> Awaitable[list[WaitingSighting]]:
        """
        Read the oldest waiting sightings; empty if no other one waits.
        """

    def one(key: str) -> Awaitable[list[WaitingSighting]]:
        """
        Read one sighting; empty if it does not wait.
        """

    def mark_sent(
        keys: Collection[str], request: PageRequest | None
    ) -> Awaitable[list[WaitingSighting] | None]:
        """
        Store durably that the receiver has taken some sightings.

        @param request: The next page to read; C{None} for none.
        @return: That page.
        """

    def set_aside(reasons: Mapping[str, str]) -> Awaitable[None]:
        """
        Set sightings aside that the receiver never takes; they no longer wait.

        @param reasons: The reasons, by key.
        """


class ISightingOutbox(IBacklog):
    """
    The sightings of a bridge, stored until they have been sent. Their keys are their STIX ids.

    Every C{Deferred} fails with L{tbvast.errors.StoreFailed} if the disk refuses.
    """

    def remember(
        sightings: Sequence[Sighting], request: PageRequest | None
    ) -> Deferred[tuple[int, list[WaitingSighting] | None]]:
        """
        Store new sightings durably; those that cannot be stored are set aside.

        @param request: The page to read next; C{None} for none.
        @return: Fires with the number of new ones, and that page.
        """

    def prune() -> Deferred[None]:
        """
        Delete the ids of sightings that were sent long ago, which then count as new again.
        """


class IIndicatorStore(Interface):
    """
    The indicators of a bridge, stored durably. It decides which of them are in force by the
    calendar, which observables they have, and for which of them past events have been searched.
    The engine's tables are a copy of it.

    Calls are executed in order. Every C{Deferred} fails with L{tbvast.errors.StoreFailed} if the
    disk refuses.
    """

    def apply(
        indicators: Sequence[Indicator],
        position: Position | None,
        run: int,
        decided: bool = False,
    ) -> Deferred[Changes]:
        """
        Store indicators in one transaction. A repeat changes nothing. Expired indicators end,
        future ones wait. One that cannot be stored is set aside.

        @param indicators: The indicators, in the bus's order.
        @param position: The position in the bus's journal after them; C{None} without numbers.
        @param run: The generation of the batch. After a failure every later call of the same
            run is refused, so that none commits the position past a gap.
        @param decided: Whether the bus has already decided between versions: then the last
            one counts. Otherwise a removal ends the indicator, and the later of two versions
            counts; a version from the future counts as of now.
        @return: Fires with the changes for the engine.
        """

    def set_aside(items: Sequence[SetAside], ids: Sequence[str] = ()) -> Deferred[None]:
        """
        Set items aside that could not be handled. Known indicators with an id that one of them
        claims survive the snapshot that is being applied.

        @param ids: Further ids that they may have.
        """

    def begin_snapshot() -> Deferred[None]:
        """
        Begin a snapshot: an indicator that is not applied before L{end_snapshot} ends then.
        """

    def end_snapshot(position: Position) -> Deferred[list[Changes]]:
        """
        End every indicator that was not applied since L{begin_snapshot}.

        @param position: The position of the snapshot in the bus's journal.
        @return: Fires with the changes for the engine, in parts.
        """

    def update_validity() -> Deferred[list[Changes]]:
        """
        End the indicators that have reached their C{valid_until}, and put those in force that
        have reached their C{valid_from}.

        @return: Fires with the changes for the engine, in parts.
        """

    def entries() -> Awaitable[list[Entry]]:
        """
        Read all entries that the engine should hold. The entry of a network also names the
        indicators of the networks that cover it. Other calls may be executed in between.
        """

    def reconcile(held: Sequence[Entry]) -> Awaitable[list[Changes]]:
        """
        Compare the store with the engine.

        @param held: The entries that the engine holds.
        @return: The changes that make the engine hold the right ones, in parts; at least one.
        """

    def unsearched(until: int, limit: int) -> Awaitable[Unsearched]:
        """
        Read the oldest indicators not searched for in past events; other calls may come between.

        @param until: The number of the last change to include.
        @param limit: The most indicators.
        """

    def mark_searched(ids: Sequence[str], until: int) -> Awaitable[None]:
        """
        Store that past events have been searched for indicators.

        @param until: As for L{unsearched}; an indicator that has changed since is searched again.
        """

    def bodies(ids: Collection[str]) -> Deferred[dict[str, bytes]]:
        """
        @return: Fires with the documents of those of some indicators that are in force, by id.
        """

    def covered() -> Deferred[Covered | None]:
        """
        @return: Fires with the moment up to which all events were matched; C{None} at first.
        """

    def set_covered(covered: Covered) -> Deferred[None]:
        """
        Store that moment. All sightings of earlier events must have been stored.
        """

    def counts() -> Deferred[JsonObject]:
        """
        @return: Fires with the numbers of C{indicators} in force, of C{unsearched} ones among
            them, and of those that are C{not_yet} valid; C{unmatched} ones by reason, and the
            reasons of the newest of these by id, as C{unmatched_ids}; the number of C{unsent}
            sightings; and that of items that were C{set_aside}, with the newest reason.
        """


class IRetention(Interface):
    """
    Enforces the retention policy of a journal.

    Every C{Deferred} fails with L{tbvast.errors.JournalFailed} if the disk refuses.
    """

    def expire(limit: int) -> Deferred[list[Outcome]]:
        """
        End indicators that are no longer valid.

        @param limit: The most to end.
        @return: Fires, once that is durable, with a numbered removal of each.
        """

    def prune(age: float, size: int, limit: int) -> Deferred[int]:
        """
        Prune superseded versions, ended indicators and sightings, but no indicator in force.

        @param age: Seconds after which an entry is deleted.
        @param size: Bytes of the journal; above this size, the oldest are deleted sooner.
        @param limit: The most entries to delete.
        @return: Fires with the number of deleted entries.
        """


class ISnapshotSource(Interface):
    """
    A source of past intel.
    """

    name: str = Attribute("The name of the source in logs.")
    time_limit: float | None = Attribute(
        "Seconds that the source has to answer; C{None} if only the asker can be slow."
    )

    def pages(
        since: float, send: Callable[[list[bytes]], Deferred[None]]
    ) -> Coroutine[Deferred[object], object, int]:
        """
        Send, page by page, every indicator that is in force. Cancelled if the asker is gone.

        @param since: Only those received at this time or later; seconds since the epoch.
        @param send: Sends a page of documents; fires when the next one may be sent.
        @return: The number of indicators.
        """


class ICursor(Interface):
    """
    A subscriber with a stored position in a bus's journal.
    """

    position: Position | None = Attribute(
        "The position up to which everything was applied; C{None} if nothing was, or the bus has"
        " no numbers."
    )

    def apply(
        items: Sequence[Item], position: Position | None, decided: bool = False
    ) -> Awaitable[None]:
        """
        Apply items, and store the position, in one durable step.

        The call may be done before that step is; L{commit} waits for it. If it fails, so do
        all steps after it.

        @param items: The items; may be none.
        @param position: C{None} if they have none.
        @param decided: Whether the bus has decided between the versions of an indicator, so
            that the last one counts, whatever its C{modified} is.
        """

    def set_aside(items: Sequence[Unreadable]) -> Awaitable[None]:
        """
        Take note of unreadable items: they do not come again. The next L{end_snapshot} does not
        end known items with one of their ids.

        @param items: At least one. Called before the items around them are applied.
        """

    def commit() -> Awaitable[None]:
        """
        Wait until all applied items are durable, or fail.
        """

    def begin_snapshot() -> Awaitable[None]:
        """
        Begin a snapshot: everything in force follows, as items without a position, and then
        L{end_snapshot}, unless another snapshot begins first.
        """

    def end_snapshot(position: Position) -> Awaitable[None]:
        """
        End the items that did not come since L{begin_snapshot}, and store the position.
        """


class ICounters(Interface):
    """
    Counts what a bus receives.
    """

    def count(kind: str, verdict: str, number: int = 1) -> None:
        """
        Count items, or messages and requests that are none.

        @param kind: C{indicator}, C{sighting}, C{message}, C{request} or C{connection}.
        @param verdict: What became of them: a L{tbvast.bus.journal.values.Verdict},
            C{forbidden}, or the reason for which a connection ended.
        """


class IPeerConnection(Interface):
    """
    A connection that was accepted, and that another thread reads, writes and closes.
    """

    address: str = Attribute("The network address whose connections count together.")
    gone: bool = Attribute("Whether the connection has been closed.")

    def has_spoken() -> bool:
        """
        @return: Whether more has arrived than a handshake.
        """

    def received() -> int:
        """
        @return: The bytes that have arrived; 0 if the connection is gone.
        """

    def abort() -> None:
        """
        Shut the connection down; the thread that owns it finds it closed.
        """


class IPausable(Interface):
    """
    A source of messages that need not be read all the time.
    """

    def pause() -> None:
        """
        Deliver no more messages until L{resume} is called.
        """

    def resume() -> None:
        """
        Deliver messages again.
        """


class IReloadable(Interface):
    """
    A service with a file that may change while it runs.
    """

    def reload() -> None:
        """
        Read the file again. If it cannot be used, log that and continue as before.
        """


SendPage = Callable[[Iterable[bytes]], Deferred[None]]
"""
Sends a page of a snapshot, as frames without the topic; fires when the next may be sent.
"""


class IPublisher(Interface):
    """
    The pub endpoint, as subscriptions use it.
    """

    def send_frames(frames: Iterable[bytes]) -> int:
        """
        Send frames to one subscriber, in order. No more of them are made than are tried.

        @return: The number of accepted frames; fewer than given if the queue is full.
        """

    def unacknowledged(topics: Iterable[bytes]) -> int | None:
        """
        @return: The bytes that wait in the kernel for the peers that listen to some ZeroMQ
            topics; C{None} if unknown. ZeroMQ's own queue is not counted.
        """
