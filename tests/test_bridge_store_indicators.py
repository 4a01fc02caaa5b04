"""
Tests for L{tbvast.bridge.store.indicators}.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.store.bridge_store import MAX_LISTED, OTHER_REASONS, BridgeStore
from tbvast.bridge.store.schema import NO_END, OLDEST_SCHEMA, OLDEST_VERSION
from tbvast.bridge.store.values import DesiredPage
from tbvast.protocol.manage import REPORT_BYTES
from tbvast.stix.indicators import Indicator, Operation
from tbvast.stix.observables import Kind, Observable
from tbvast.storage.digest_index import digest
from tbvast.storage.sqlite import connect, migrate
from tbvast.values import Changes, Entry, Position
from tests.doubles import an_indicator, indicator_id, moment
from tests.doubles_bridge import FileStoreTestCase, only, reconcile

ALL = 1 << 60
"""
More than any number of a change.
"""


def ip(number: int) -> Observable:
    return Observable(Kind.IP, f"192.0.2.{number}")


def entry(observable: Observable, *numbers: int) -> Entry:
    return Entry(observable, tuple(indicator_id(number) for number in numbers))


def network(text: str) -> Observable:
    return Observable(Kind.NETWORK, text)


def subnet(number: int, text: str, **changes: Any) -> Indicator:
    """
    An indicator of an IPv4 network.
    """
    return an_indicator(number, pattern=f"[ipv4-addr:value ISSUBSET '{text}']", **changes)


class StoreTestCase(FileStoreTestCase):
    """
    A test with the indicators of a store.
    """

    def apply(
        self,
        *indicators: Indicator,
        now: float = 10.0,
        search: bool = True,
        decided: bool = False,
    ) -> Changes:
        return self.store.indicators.apply(indicators, now, search, decided=decided)

    def in_force(self) -> set[str]:
        return set(self.store.indicators.bodies([indicator_id(number) for number in range(20)]))

    def unsearched(self) -> list[str]:
        return list(self.store.entries.unsearched(ALL, 100).ids)


class ApplyTests(StoreTestCase):
    """
    The changes of the engine's tables that indicators cause.
    """

    def test_new(self) -> None:
        """
        New indicators are written, with their ids; the document is kept as it came.
        """
        one = an_indicator(1)
        changes = self.apply(one, an_indicator(2))
        self.assertCountEqual(changes.write, [entry(ip(1), 1), entry(ip(2), 2)])
        self.assertEqual(changes.erase, ())
        self.assertEqual(self.store.indicators.bodies([one.id]), {one.id: one.raw})

    def test_repeat(self) -> None:
        """
        A repeat tells the engine nothing.
        """
        self.apply(an_indicator(1))
        changes = self.apply(an_indicator(1))
        self.assertEqual((changes.write, changes.erase), ((), ()))

    def test_plain(self) -> None:
        """
        The most frequent indicators are written by fewer steps, as all others are.
        """
        url = "[url:value = 'http://evil.example/a']"
        given = [
            an_indicator(1),
            subnet(2, "198.51.100.0/24"),
            an_indicator(3, pattern=url, valid_from=moment(1), valid_until=moment(90)),
            an_indicator(4, pattern=an_indicator(1).pattern),
            an_indicator(5, valid_from=moment(50)),
            an_indicator(6, valid_until=moment(3)),
            an_indicator(7, pattern=f"{url} AND {an_indicator(1).pattern}"),
        ]
        self.assertEqual(sum(each.surely_matchable for each in given), 5)
        slow = [msgspec.structs.replace(each, surely_matchable=False) for each in given]
        known = an_indicator(8, pattern=an_indicator(1).pattern)
        found = []
        for batches in ([given], [slow], [[each] for each in given], [[each] for each in slow]):
            self.path = Path(self.mktemp())
            self.reopen()
            self.apply(known)
            told = [self.apply(*batch, now=10.0, search=False) for batch in batches]
            self.reopen()
            connection = connect(self.path)
            self.addCleanup(connection.close)
            rows = connection.execute(
                "SELECT id, digest, modified, valid_from, valid_until, state, searched,"
                " generation, wanted, unmatched, body FROM indicators"
            )
            held = {each.observable: each.ids for each in self.store.entries.all()}
            last = {entry.observable: entry.ids for changes in told for entry in changes.write}
            found.append((sorted(rows), held, last))
        self.assertEqual(len(found[0][1]), 3)
        for other in found[1:]:
            self.assertEqual(found[0], other)

    def test_numbers_rise(self) -> None:
        """
        Later changes have higher numbers, in another process too.
        """
        first = self.apply(an_indicator(1)).number
        self.reopen()
        self.assertEqual(self.store.entries.change, first)
        self.assertGreater(self.apply(an_indicator(2)).number, first)

    def test_older(self) -> None:
        """
        A version older than the one that is kept changes nothing.
        """
        newer = an_indicator(1, 5)
        self.apply(newer)
        changes = self.apply(an_indicator(1, 3, pattern="[ipv4-addr:value = '192.0.2.9']"))
        self.assertEqual(changes.write, ())
        self.assertEqual(self.store.indicators.bodies([newer.id]), {newer.id: newer.raw})

    def test_edited(self) -> None:
        """
        An edit with another pattern lets go of the old observable.
        """
        self.apply(an_indicator(1))
        changes = self.apply(
            an_indicator(1, 2, pattern="[ipv4-addr:value = '192.0.2.9']", x_threatbus_update="EDIT")
        )
        self.assertEqual(changes.write, (entry(ip(9), 1),))
        self.assertEqual(changes.erase, (ip(1),))

    def test_edited_elsewhere(self) -> None:
        """
        A newer version with the same pattern tells the engine nothing, but is kept.
        """
        self.apply(an_indicator(1))
        newer = an_indicator(1, 2, name="another")
        changes = self.apply(newer)
        self.assertEqual((changes.write, changes.erase), ((), ()))
        self.assertEqual(self.store.indicators.bodies([newer.id]), {newer.id: newer.raw})

    def test_removed(self) -> None:
        """
        A withdrawn indicator is erased.
        """
        self.apply(an_indicator(1))
        changes = self.apply(an_indicator(1, 2, pattern=None, x_threatbus_update="REMOVE"))
        self.assertEqual(changes.erase, (ip(1),))
        self.assertEqual(self.in_force(), set())

    def test_removed_unknown(self) -> None:
        """
        The withdrawal of an unknown indicator changes nothing.
        """
        changes = self.apply(an_indicator(1, x_threatbus_update="REMOVE"))
        self.assertEqual((changes.write, changes.erase), ((), ()))

    def test_removed_repeat(self) -> None:
        """
        A repeat does not bring a withdrawn indicator back; a newer version does.
        """
        self.apply(an_indicator(1, 2))
        self.apply(an_indicator(1, 3, x_threatbus_update="REMOVE"))
        self.assertEqual(self.apply(an_indicator(1, 2)).write, ())
        self.assertEqual(self.apply(an_indicator(1, 3)).write, ())
        self.assertEqual(self.apply(an_indicator(1, 4)).write, (entry(ip(1), 1),))

    def test_decided(self) -> None:
        """
        Decisions of the bus are applied in order, whatever the versions are.
        """
        for order in (
            [an_indicator(1, 9), an_indicator(1, 5, name="other")],
            [an_indicator(1, 9), an_indicator(1, 3, x_threatbus_update="REMOVE")],
            [
                an_indicator(1, 9),
                an_indicator(1, 9, x_threatbus_update="REMOVE"),
                an_indicator(1, 9),
            ],
            [an_indicator(1, 9), an_indicator(1, 8, valid_until=moment(9))],
        ):
            for cut in (1, len(order)):
                with self.subTest(order=order, cut=cut):
                    self.path = Path(self.mktemp())
                    self.reopen()
                    for start in range(0, len(order), cut):
                        self.apply(*order[start : start + cut], decided=True)
                    last = order[-1]
                    lasts = last.operation is not Operation.REMOVE and not last.valid_until
                    self.assertEqual(
                        self.store.indicators.bodies([last.id]),
                        {last.id: last.raw} if lasts else {},
                    )

    def test_from_the_future(self) -> None:
        """
        If the bus has not decided, a version from the future counts as of its receipt, so a later
        correction or removal prevails.
        """
        future = "9999-12-31T23:59:59Z"
        for number, end in enumerate(
            (
                an_indicator(1, 15, name="right"),
                an_indicator(2, 15, revoked=True),
                an_indicator(3, 1, x_threatbus_update="REMOVE"),
                an_indicator(4, modified="9999-12-31T23:59:58Z"),
            ),
            1,
        ):
            with self.subTest(end=end):
                self.apply(an_indicator(number, modified=future), now=10.0)
                self.apply(an_indicator(number, 9), now=11.0)
                self.assertIn(indicator_id(number), self.in_force())
                self.apply(end, now=20.0)
                lasts = end.operation is not Operation.REMOVE
                self.assertEqual(
                    self.store.indicators.bodies([end.id]), {end.id: end.raw} if lasts else {}
                )

    def test_removed_without_version(self) -> None:
        """
        A withdrawal that has no version holds for the version that was known.
        """
        self.apply(an_indicator(1, 2))
        self.apply(an_indicator(1, None, x_threatbus_update="REMOVE"))
        self.assertEqual(self.in_force(), set())
        self.assertEqual(self.apply(an_indicator(1, 2)).write, ())

    def test_shared(self) -> None:
        """
        Two indicators with one observable share an entry, until the last one goes.
        """
        value = "[domain-name:value = 'evil.example']"
        evil = Observable(Kind.DOMAIN, "evil.example")
        self.apply(an_indicator(1, pattern=value))
        self.assertEqual(self.apply(an_indicator(2, pattern=value)).write, (entry(evil, 1, 2),))
        changes = self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.assertEqual((changes.write, changes.erase), ((entry(evil, 2),), ()))
        changes = self.apply(an_indicator(2, 2, x_threatbus_update="REMOVE"))
        self.assertEqual((changes.write, changes.erase), ((), (evil,)))

    def test_unmatched(self) -> None:
        """
        An indicator that cannot be matched is reported with a reason; others are not affected.
        """
        changes = self.apply(
            an_indicator(1, pattern_type="yara", pattern="rule x {}"), an_indicator(2)
        )
        self.assertEqual(changes.unmatched, {indicator_id(1): ("pattern type yara",)})
        self.assertEqual(changes.write, (entry(ip(2), 2),))
        self.assertEqual(self.store.counts()["unmatched"], {"pattern type yara": 1})
        self.assertEqual(self.unsearched(), [indicator_id(2)])


class ExpiryTests(StoreTestCase):
    """
    Indicators that are valid until some time.
    """

    def test_expire(self) -> None:
        """
        An expired indicator is erased, once.
        """
        self.apply(an_indicator(1, valid_until=moment(100)), an_indicator(2))
        self.assertEqual(only(self.store.indicators.update_validity(99.0, True)).erase, ())
        self.assertEqual(only(self.store.indicators.update_validity(100.0, True)).erase, (ip(1),))
        self.assertEqual(self.in_force(), {indicator_id(2)})
        self.assertEqual(only(self.store.indicators.update_validity(200.0, True)).erase, ())

    def test_too_late(self) -> None:
        """
        An indicator that has expired before its arrival is never written.
        """
        self.assertEqual(self.apply(an_indicator(1, valid_until=moment(100)), now=100).write, ())

    def test_ended_by_edit(self) -> None:
        """
        An edit that sets the end to the past ends the indicator.
        """
        self.apply(an_indicator(1))
        changes = self.apply(an_indicator(1, 2, valid_until=moment(50)), now=60)
        self.assertEqual(changes.erase, (ip(1),))

    def test_prolonged(self) -> None:
        """
        A newer version that is valid for longer is not ended.
        """
        self.apply(an_indicator(1, valid_until=moment(100)))
        self.apply(an_indicator(1, 2, valid_until=moment(300)))
        self.assertEqual(only(self.store.indicators.update_validity(200.0, True)).erase, ())


class BeginningTests(StoreTestCase):
    """
    Indicators that are valid from some time.
    """

    def test_waits(self) -> None:
        """
        A future indicator is written and searched for when it becomes valid.
        """
        changes = self.apply(an_indicator(1, valid_from=moment(100)), now=50)
        self.assertEqual(changes, Changes(changes.number))
        self.assertEqual(self.in_force(), set())
        self.assertEqual(self.store.counts()["not_yet"], 1)
        self.assertEqual(only(self.store.indicators.update_validity(99.0, True)).write, ())
        self.reopen()
        begun = only(self.store.indicators.update_validity(100.0, True))
        self.assertEqual(begun.write, (entry(ip(1), 1),))
        self.assertGreater(begun.number, changes.number)
        self.assertEqual(self.unsearched(), [indicator_id(1)])
        self.assertEqual(only(self.store.indicators.update_validity(200.0, True)).write, ())
        self.assertEqual(self.store.counts()["not_yet"], 0)

    def test_no_search(self) -> None:
        """
        If past events are not searched, an indicator that becomes valid waits for no search.
        """
        self.apply(an_indicator(1, valid_from=moment(100)), now=50, search=False)
        only(self.store.indicators.update_validity(100.0, False))
        self.assertEqual(self.unsearched(), [])

    def test_withdrawn(self) -> None:
        """
        An indicator that is withdrawn or expires before it becomes valid is never written.
        """
        self.apply(
            an_indicator(1, valid_from=moment(100)),
            an_indicator(2, valid_from=moment(100), valid_until=moment(200)),
            now=50,
        )
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"), now=60)
        only(self.store.indicators.update_validity(300.0, True))
        self.assertEqual(only(self.store.indicators.update_validity(300.0, True)).write, ())

    def test_postponed(self) -> None:
        """
        A newer version that begins later is no longer in force until then.
        """
        self.apply(an_indicator(1), now=50)
        changes = self.apply(an_indicator(1, 2, valid_from=moment(100)), now=60)
        self.assertEqual(changes.erase, (ip(1),))
        self.assertEqual(
            only(self.store.indicators.update_validity(100.0, True)).write, (entry(ip(1), 1),)
        )

    def test_not_matched(self) -> None:
        """
        An indicator that cannot be matched is reported when it becomes valid.
        """
        later = an_indicator(1, pattern_type="yara", pattern="{", valid_from=moment(100))
        self.assertEqual(self.apply(later, now=50).unmatched, {})
        self.assertEqual(
            set(only(self.store.indicators.update_validity(100.0, True)).unmatched),
            {indicator_id(1)},
        )


class TogetherTests(StoreTestCase):
    """
    Indicators that want several observables in one event.
    """

    BOTH = "[ipv4-addr:value = '192.0.2.1' AND domain-name:value = 'evil.example']"
    EITHER = BOTH.replace("AND", "OR")

    def test_joint(self) -> None:
        """
        The search is told which observables are not enough.
        """
        self.apply(an_indicator(1, pattern=self.BOTH), an_indicator(2))
        joint = {
            each.observable: each.joint for each in self.store.entries.unsearched(ALL, 9).entries
        }
        evil = Observable(Kind.DOMAIN, "evil.example")
        self.assertEqual(joint, {ip(1): True, evil: True, ip(2): False})

    def test_edited(self) -> None:
        """
        With the same observables, wanted in another way, past events are searched again.
        """
        self.apply(an_indicator(1, pattern=self.BOTH))
        self.store.entries.mark_searched([indicator_id(1)], ALL)
        changes = self.apply(an_indicator(1, 2, pattern=self.EITHER))
        self.assertEqual((changes.write, changes.erase), ((), ()))
        self.assertEqual(self.unsearched(), [indicator_id(1)])


class EscapedTests(StoreTestCase):
    """
    URLs with escapes, which some logs undo.
    """

    def test_both(self) -> None:
        """
        A URL is wanted as it is, and as it is when its escapes are undone.
        """
        url = an_indicator(1, pattern="[url:value = 'http://a.example/it%27s']")
        as_is = Observable(Kind.URL, "a.example/it%27s")
        undone = Observable(Kind.URL, "unescaped a.example/it's")
        self.assertCountEqual(self.apply(url).write, [entry(as_is, 1), entry(undone, 1)])
        gone = self.apply(an_indicator(1, 2, pattern=None, x_threatbus_update="REMOVE"))
        self.assertCountEqual(gone.erase, [as_is, undone])


class UnmatchedTests(StoreTestCase):
    """
    The reports on indicators that are not matched.
    """

    def test_named_once(self) -> None:
        """
        An indicator is named again only for another reason.
        """
        yara: Any = {"pattern_type": "yara", "pattern": "{"}
        self.assertEqual(len(self.apply(an_indicator(1, **yara)).unmatched), 1)
        self.assertEqual(self.apply(an_indicator(1, **yara)).unmatched, {})
        self.assertEqual(self.apply(an_indicator(1, 2, **yara)).unmatched, {})
        changes = self.apply(an_indicator(1, 3, pattern_type="pcre", pattern="x"))
        self.assertEqual(changes.unmatched, {indicator_id(1): ("pattern type pcre",)})

    def test_listed(self) -> None:
        """
        The newest are listed and all are counted, without matched and ended ones.
        """
        many = [
            an_indicator(n, pattern_type="yara", pattern="{") for n in range(1, MAX_LISTED + 11)
        ]
        self.apply(*many, an_indicator(500), an_indicator(501, pattern="[process:name = 'x']"))
        self.apply(an_indicator(501, 2, x_threatbus_update="REMOVE"))
        counts = self.store.counts()
        self.assertEqual(counts["unmatched"], {"pattern type yara": MAX_LISTED + 10})
        self.assertEqual(
            counts["unmatched_ids"],
            {indicator_id(n): ["pattern type yara"] for n in range(MAX_LISTED + 10, 10, -1)},
        )

    def test_bounded(self) -> None:
        """
        However long the reasons, and however many, a bus takes the report.
        """
        paths = [f"x-{n}-{'y' * 100}:{'z' * 200}" for n in range(300)]
        self.apply(
            *(
                an_indicator(n, pattern=" OR ".join(f"[{path} = 1]" for path in paths[n : n + 5]))
                for n in range(290)
            )
        )
        counts = self.store.counts()
        self.assertIn(OTHER_REASONS, counts["unmatched"])
        self.assertLess(len(msgspec.json.encode(counts)), REPORT_BYTES * 0.8)


class RulesTests(StoreTestCase):
    """
    A store that another version has written.
    """

    def old(self) -> None:
        """
        The store is one of the oldest version, and of older rules.
        """
        self.store.close()
        self.path.unlink()
        first = connect(self.path)
        migrate(first, [OLDEST_SCHEMA], OLDEST_VERSION)
        for number, pattern, terms in (
            (1, "[ipv4-addr:value = '192.0.2.1']", '[["ip","192.0.2.1"]]'),
            (2, TogetherTests.BOTH, "[]"),
            (3, "[ipv4-addr:value = '198.51.100.0/24']", '[["network","198.51.100.0/24"]]'),
        ):
            one = an_indicator(number, pattern=pattern)
            named = (number, one.id, digest(one.id), one.modified)
            first.execute(
                "INSERT INTO indicators VALUES (?, ?, ?, ?, 0, ?, 1, ?, 1, 0, ?, '[]', ?)",
                (*named, NO_END, number, terms, one.raw),
            )
        first.execute("INSERT INTO networks VALUES (3)")
        first.execute("UPDATE position SET plugin = 'bus', number = 7")
        first.close()
        self.open()

    def test_migrated(self) -> None:
        """
        Known observables stay; new ones are matched and searched for.
        """
        self.old()
        self.assertEqual(self.store.indicators.position, Position("bus", 7))
        wide = network("198.51.100.0/24")
        self.assertEqual(set(self.store.entries.all()), {entry(ip(1), 1), entry(wide, 3)})
        self.assertEqual(self.apply(an_indicator(1)).write, ())
        self.store.indicators.rebuild_observables(True)
        evil = Observable(Kind.DOMAIN, "evil.example")
        known = {entry(ip(1), 1, 2), entry(evil, 2), entry(wide, 3)}
        self.assertEqual(set(self.store.entries.all()), known)
        self.assertEqual(self.unsearched(), [indicator_id(2)])
        self.assertEqual(self.in_force(), {indicator_id(number) for number in (1, 2, 3)})
        self.assertEqual(
            self.apply(subnet(4, "198.51.100.128/25")).write,
            (entry(network("198.51.100.128/25"), 3, 4),),
        )
        self.assertGreater(self.store.entries.change, 2)

    def test_derived_once(self) -> None:
        """
        By the same rules nothing is found again.
        """
        self.store.indicators.rebuild_observables(True)
        self.apply(an_indicator(1))
        change = self.store.entries.change
        self.reopen()
        self.store.indicators.rebuild_observables(True)
        self.assertEqual(self.store.entries.change, change)


class NetworkTests(StoreTestCase):
    """
    Networks within networks: an engine finds the narrowest only.
    """

    def test_narrow_after_wide(self) -> None:
        """
        A network has the ids of those that cover it too.
        """
        self.apply(subnet(1, "10.0.0.0/8"))
        self.assertEqual(
            self.apply(subnet(2, "10.1.0.0/16")).write,
            (entry(network("10.1.0.0/16"), 1, 2),),
        )

    def test_wide_after_narrow(self) -> None:
        """
        A wider network that is added later changes those within it, and no others.
        """
        self.apply(subnet(2, "10.1.0.0/16"), subnet(3, "172.16.0.0/12"))
        self.assertCountEqual(
            self.apply(subnet(1, "10.0.0.0/8")).write,
            [entry(network("10.0.0.0/8"), 1), entry(network("10.1.0.0/16"), 1, 2)],
        )

    def test_wide_removed(self) -> None:
        """
        With a wider network its ids go from those within it.
        """
        self.apply(subnet(1, "10.0.0.0/8"), subnet(2, "10.1.0.0/16"))
        changes = self.apply(subnet(1, "10.0.0.0/8", version=2, x_threatbus_update="REMOVE"))
        self.assertEqual(changes.write, (entry(network("10.1.0.0/16"), 2),))
        self.assertEqual(changes.erase, (network("10.0.0.0/8"),))

    def test_reopened(self) -> None:
        """
        The networks are known after a restart.
        """
        self.apply(subnet(1, "10.0.0.0/8"))
        self.reopen()
        self.assertEqual(
            self.apply(subnet(2, "10.1.0.0/16")).write,
            (entry(network("10.1.0.0/16"), 1, 2),),
        )

    def test_families(self) -> None:
        """
        The widest IPv4 network covers no IPv6 network.
        """
        six = an_indicator(2, pattern="[ipv6-addr:value ISSUBSET '2001:db8::/32']")
        self.apply(subnet(1, "0.0.0.0/0"))
        self.assertEqual(self.apply(six).write, (entry(network("2001:db8::/32"), 2),))

    def test_entries(self) -> None:
        """
        The list of all entries says the same.
        """
        self.apply(subnet(1, "10.0.0.0/8"), subnet(2, "10.1.0.0/16"), an_indicator(3))
        self.assertCountEqual(
            self.store.entries.all(),
            [
                entry(network("10.0.0.0/8"), 1),
                entry(network("10.1.0.0/16"), 1, 2),
                entry(ip(3), 3),
            ],
        )

    def test_searched(self) -> None:
        """
        A search for nested networks finds both where they overlap.
        """
        self.apply(subnet(1, "10.0.0.0/8"), subnet(2, "10.1.0.0/16"))
        entries = self.store.entries.unsearched(ALL, 100).entries
        self.assertIn(entry(network("10.1.0.0/16"), 1, 2), entries)


class ReconcileTests(StoreTestCase):
    """
    The changes for an engine that already holds entries.
    """

    def test_empty(self) -> None:
        """
        An engine that lost everything is given everything.
        """
        self.apply(an_indicator(1), an_indicator(2))
        changes = reconcile(self.store, [])
        self.assertCountEqual(changes.write, [entry(ip(1), 1), entry(ip(2), 2)])
        self.assertEqual(changes.number, self.store.entries.change)

    def test_same(self) -> None:
        """
        There are no changes for an engine with the right entries, whatever the order of ids.
        """
        value = "[ipv4-addr:value = '192.0.2.1']"
        self.apply(an_indicator(1, pattern=value), an_indicator(2, pattern=value))
        changes = reconcile(self.store, [entry(ip(1), 2, 1)])
        self.assertEqual((changes.write, changes.erase), ((), ()))

    def test_differences(self) -> None:
        """
        Only missing or different entries are written, and only stale ones are erased.
        """
        self.apply(an_indicator(1), an_indicator(2), an_indicator(3))
        changes = reconcile(self.store, [entry(ip(1), 1), entry(ip(2), 9), entry(ip(8), 8)])
        self.assertCountEqual(changes.write, [entry(ip(2), 2), entry(ip(3), 3)])
        self.assertEqual(changes.erase, (ip(8),))


class SearchedTests(StoreTestCase):
    """
    Which indicators have been looked for in past events.
    """

    def test_marked(self) -> None:
        """
        An indicator that was searched for is not returned again, even after a restart.
        """
        self.apply(an_indicator(1))
        page = self.store.entries.unsearched(ALL, 10)
        self.assertEqual((page.ids, page.entries), ((indicator_id(1),), (entry(ip(1), 1),)))
        self.store.entries.mark_searched(page.ids, ALL)
        self.reopen()
        self.assertEqual(self.unsearched(), [])

    def test_pages(self) -> None:
        """
        The oldest come first, as many as wanted, and none that is too new.
        """
        first = self.apply(an_indicator(2)).number
        self.apply(an_indicator(1))
        self.assertEqual(self.store.entries.unsearched(first, 10).ids, (indicator_id(2),))
        page = self.store.entries.unsearched(ALL, 1)
        self.assertEqual(page.ids, (indicator_id(2),))
        assert page.last is not None
        page = self.store.entries.unsearched(ALL, 1, page.last)
        self.assertEqual(page.ids, (indicator_id(1),))
        assert page.last is not None
        self.assertEqual(self.store.entries.unsearched(ALL, 1, page.last), DesiredPage(None))

    def test_not_wanted(self) -> None:
        """
        Where past events are not searched, nothing waits for it.
        """
        self.apply(an_indicator(1), search=False)
        self.assertEqual(self.unsearched(), [])

    def test_edit_keeps(self) -> None:
        """
        An edit that asks for nothing new need not be searched for again.
        """
        self.apply(an_indicator(1))
        self.store.entries.mark_searched([indicator_id(1)], ALL)
        self.apply(an_indicator(1, 2, name="another"))
        self.assertEqual(self.unsearched(), [])

    def test_edit_keeps_waiting(self) -> None:
        """
        An edit of an unsearched indicator leaves it unsearched.
        """
        self.apply(an_indicator(1))
        self.apply(an_indicator(1, 2, name="another"))
        self.assertEqual(self.unsearched(), [indicator_id(1)])

    def test_edit_of_pattern(self) -> None:
        """
        A new pattern is searched for.
        """
        self.apply(an_indicator(1))
        self.store.entries.mark_searched([indicator_id(1)], ALL)
        self.apply(an_indicator(1, 2, pattern="[ipv4-addr:value = '192.0.2.9']"))
        self.assertEqual(self.store.entries.unsearched(ALL, 10).entries, (entry(ip(9), 1),))

    def test_changed_meanwhile(self) -> None:
        """
        An indicator that changes during its search is searched for again.
        """
        until = self.apply(an_indicator(1)).number
        self.apply(an_indicator(1, 2, pattern="[ipv4-addr:value = '192.0.2.9']"))
        self.store.entries.mark_searched([indicator_id(1)], until)
        self.assertEqual(self.unsearched(), [indicator_id(1)])

    def test_removed(self) -> None:
        """
        An indicator that has ended is not searched for.
        """
        self.apply(an_indicator(1))
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.assertEqual(self.unsearched(), [])
        self.assertEqual(self.store.counts()["unsearched"], 0)


class PositionTests(StoreTestCase):
    """
    How far the bus's journal has been applied.
    """

    def test_none(self) -> None:
        """
        A new store has no position, and items without one leave it so.
        """
        self.assertIsNone(self.store.indicators.position)
        self.apply(an_indicator(1))
        self.reopen()
        self.assertIsNone(self.store.indicators.position)

    def test_same_step(self) -> None:
        """
        The position is as durable as the indicators that were applied with it.
        """
        self.store.indicators.apply([an_indicator(1)], 0.0, True, Position("bus", 7))
        self.reopen()
        self.assertEqual(self.store.indicators.position, Position("bus", 7))
        self.assertEqual(self.in_force(), {indicator_id(1)})

    def test_not_applied(self) -> None:
        """
        Where the disk refuses, neither the items nor the position are taken.
        """
        self.store.indicators.apply([], 0.0, True, Position("bus", 1))
        broken: Any = [an_indicator(1), None]
        self.assertRaises(
            AttributeError, self.store.indicators.apply, broken, 0.0, True, Position("bus", 2)
        )
        self.assertEqual(self.store.indicators.position, Position("bus", 1))
        self.assertEqual(self.in_force(), set())
        self.reopen()
        self.assertEqual(self.store.indicators.position, Position("bus", 1))

    def test_snapshot(self) -> None:
        """
        A snapshot ends the indicators that it does not contain, whether the others are repeats or
        not.
        """
        self.apply(an_indicator(1), an_indicator(2))
        self.store.indicators.begin_snapshot()
        self.apply(an_indicator(2), an_indicator(3))
        changes = only(self.store.indicators.end_snapshot(Position("other", 4)))
        self.assertEqual((changes.write, changes.erase), ((), (ip(1),)))
        self.assertEqual(self.in_force(), {indicator_id(2), indicator_id(3)})
        self.assertEqual(self.store.indicators.position, Position("other", 4))

    def test_snapshot_interrupted(self) -> None:
        """
        Until a snapshot is complete nothing ends, and another one begins anew.
        """
        self.apply(an_indicator(1), an_indicator(2))
        self.store.indicators.begin_snapshot()
        self.apply(an_indicator(2))
        self.reopen()
        self.assertEqual(self.in_force(), {indicator_id(1), indicator_id(2)})
        self.store.indicators.begin_snapshot()
        self.apply(an_indicator(1))
        self.assertEqual(
            only(self.store.indicators.end_snapshot(Position("bus", 1))).erase, (ip(2),)
        )


class DamageTests(StoreTestCase):
    """
    Values of one row that are damaged cost that row at the most.
    """

    def aside(self) -> int:
        found: int = self.store.counts()["set_aside"].get("count", 0)
        return found

    def damage(self, column: str, value: bytes, *numbers: int) -> None:
        for number in numbers:
            self.store.connection.execute(
                f"UPDATE indicators SET {column} = cast(? AS TEXT) WHERE id = ?",
                (value, indicator_id(number)),
            )

    def test_wanted(self) -> None:
        """
        Damaged terms are rebuilt from the document, whichever call reads them.
        """
        ids = [indicator_id(n) for n in range(1, 6)]
        pattern = "[domain-name:value = 'evil.example']"
        uses: list[Callable[[], Any]] = [
            lambda: list(self.store.entries.all()),
            lambda: reconcile(self.store, []),
            lambda: self.store.entries.unsearched(1 << 40, 100),
            lambda: only(self.store.indicators.update_validity(0.0, True)),
            lambda: self.store.indicators.apply([an_indicator(1, 2, pattern=pattern)], 0.0, True),
            lambda: self.store.indicators.apply(
                [an_indicator(2, 2, x_threatbus_update="REMOVE")], 0.0, True
            ),
            lambda: self.store.counts(),
        ]
        for number, use in enumerate(uses):
            for column in ("wanted", "unmatched"):
                for value in (b"[[", b"\xff\xfe", b'{"a":1}', b"[[1,2,3,4]]"):
                    self.store.close()
                    self.path = Path(self.mktemp())
                    self.store = BridgeStore(self.path)
                    self.store.indicators.apply([an_indicator(n) for n in range(1, 6)], 0.0, True)
                    self.damage(column, value, 1, 4)
                    with self.subTest(use=number, column=column, value=value):
                        use()
                        held = {id for entry in self.store.entries.all() for id in entry.ids}
                        self.assertEqual(held, set(self.store.indicators.bodies(ids)))
                        self.assertGreaterEqual(len(held), 4)
                        self.store.counts()
        self.assertEqual(self.aside(), 0)

    def test_document(self) -> None:
        """
        An indicator whose terms and document are both damaged is set aside.
        """
        self.store.indicators.apply([an_indicator(n) for n in range(1, 6)], 0.0, True)
        self.damage("wanted", b"[[", 2)
        self.damage("body", b"{", 2)
        held = {id for entry in self.store.entries.all() for id in entry.ids}
        self.assertEqual(held, {indicator_id(n) for n in (1, 3, 4, 5)})
        self.assertEqual(self.aside(), 1)

    def test_begin(self) -> None:
        """
        One that is damaged when it becomes valid ends, and the others begin.
        """
        self.store.indicators.apply(
            [an_indicator(n, valid_from=moment(50)) for n in (1, 2, 3)], 0.0, True
        )
        self.damage("body", b"{", 2)
        changes = only(self.store.indicators.update_validity(60.0, True))
        self.assertEqual(
            {entry.ids for entry in changes.write}, {(indicator_id(1),), (indicator_id(3),)}
        )
        self.assertEqual(only(self.store.indicators.update_validity(70.0, True)).write, ())
        self.assertEqual(self.aside(), 1)
        self.assertEqual(self.store.counts()["not_yet"], 0)

    def test_derive(self) -> None:
        """
        One that is damaged when all are looked at again ends, and its entry goes.
        """
        self.store.indicators.apply([an_indicator(n) for n in (1, 2, 3)], 0.0, True)
        self.damage("body", b"{", 2)
        self.store.connection.execute("UPDATE position SET rules = 0")
        self.store.close()
        self.store = BridgeStore(self.path)
        self.store.indicators.rebuild_observables(True)
        held = {id for entry in self.store.entries.all() for id in entry.ids}
        self.assertEqual(held, {indicator_id(1), indicator_id(3)})
        self.assertEqual(self.aside(), 1)


class DiskErrorTests(StoreTestCase):
    """
    A disk that refuses.
    """

    def run_elsewhere(self, statement: str) -> None:
        other = sqlite3.connect(self.path)
        with other:
            other.execute(statement)
        other.close()

    def test_nothing_half_done(self) -> None:
        """
        A failed write leaves no trace, not even in memory, and succeeds when the disk works again.
        """
        self.store.indicators.apply([an_indicator(1)], 0.0, True, Position("bus", 1))
        batch = [
            an_indicator(1, 2, x_threatbus_update="REMOVE"),
            subnet(2, "10.0.0.0/8"),
            subnet(3, "10.1.0.0/16"),
        ]
        before = list(self.store.entries.all()), self.store.counts()
        for table, condition in (
            ("INSERT ON indicators", f"new.id = '{indicator_id(3)}'"),
            ("UPDATE ON position", "true"),
        ):
            with self.subTest(table):
                self.run_elsewhere(
                    f"CREATE TRIGGER refusal BEFORE {table} WHEN {condition}"
                    " BEGIN SELECT raise(FAIL, 'disk I/O error'); END"
                )
                self.assertRaises(
                    sqlite3.Error, self.store.indicators.apply, batch, 0.0, True, Position("bus", 2)
                )
                self.assertEqual((list(self.store.entries.all()), self.store.counts()), before)
                self.assertEqual(self.store.indicators.position, Position("bus", 1))
                self.run_elsewhere("DROP TRIGGER refusal")
        changes = self.store.indicators.apply(batch, 0.0, True, Position("bus", 2))
        self.assertEqual(changes.erase, (ip(1),))
        self.assertEqual(
            set(changes.write),
            {entry(network("10.0.0.0/8"), 2), entry(network("10.1.0.0/16"), 2, 3)},
        )


indicators = st.builds(
    an_indicator,
    st.integers(1, 4),
    st.integers(1, 4),
    pattern=st.sampled_from(
        [
            "[ipv4-addr:value = '192.0.2.1']",
            "[ipv4-addr:value IN ('192.0.2.1', '192.0.2.2')]",
            "[ipv4-addr:value ISSUBSET '10.0.0.0/8']",
            "[ipv4-addr:value ISSUBSET '10.1.0.0/16']",
            "[ipv4-addr:value ISSUBSET '10.1.0.0/24']",
            "[process:name = 'x']",
        ]
    ),
    x_threatbus_update=st.sampled_from([None, None, None, "REMOVE"]),
    valid_until=st.sampled_from([None, None, moment(50)]),
)


class AgreementTests(SynchronousTestCase):
    """
    An engine that applies all changes holds the right entries.
    """

    @settings(max_examples=50)
    @given(st.lists(st.lists(indicators, max_size=4), max_size=6), st.integers(0, 6))
    def test_agreement(self, batches: list[list[Indicator]], snapshot: int) -> None:
        """
        Whatever comes in whatever order, and whatever a snapshot ends.

        @param snapshot: Before which batch the snapshot begins.
        """
        told: dict[Observable, tuple[str, ...]] = {}

        def tell(changes: Changes) -> None:
            told.update((entry.observable, entry.ids) for entry in changes.write)
            for observable in changes.erase:
                told.pop(observable, None)
            self.assertEqual(told, {entry.observable: entry.ids for entry in store.entries.all()})
            held = [Entry(observable, ids) for observable, ids in told.items()]
            self.assertEqual(reconcile(store, held), Changes(store.entries.change))

        store = BridgeStore(Path(self.mktemp()))
        try:
            for number, batch in enumerate(batches):
                if number == snapshot:
                    store.indicators.begin_snapshot()
                tell(store.indicators.apply(batch, 0.0, True))
            if snapshot < len(batches):
                tell(only(store.indicators.end_snapshot(Position("bus", 1))))
            tell(only(store.indicators.update_validity(60.0, True)))
        finally:
            store.close()
