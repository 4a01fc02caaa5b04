"""
Tests for L{tbvast.protocol.topics}.
"""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.protocol.topics import (
    STIX2_TOPIC_LENGTH,
    STREAM_TOPICS,
    Dialect,
    Stream,
    dialect_of,
    new_topic,
    streams_of,
)


class StreamsTests(SynchronousTestCase):
    """
    Tests for L{streams_of}.
    """

    def test_names(self) -> None:
        """
        Each name of a stream selects this stream only.
        """
        for stream, names in STREAM_TOPICS.items():
            for name in names:
                with self.subTest(name):
                    self.assertEqual(streams_of([name]), {stream})

    def test_prefixes(self) -> None:
        """
        A topic is a prefix of the names that it selects, never the other way round.
        """
        both = {Stream.INTEL, Stream.SIGHTING}
        for topics, expected in [
            (["stix2/"], both),
            (["threatbus/"], both),
            (["threatbus/i"], {Stream.INTEL}),
            (["stix2/s"], {Stream.SIGHTING}),
            (["stix2/indicator", "threatbus/intel"], {Stream.INTEL}),
            (["stix2/indicator", "stix2/indicator", "threatbus/sighting"], both),
            (["stix2/indicators"], set()),
            (["vast/sightings"], set()),
            (["nothing"], set()),
            ([], set()),
        ]:
            with self.subTest(topics):
                self.assertEqual(streams_of(topics), expected)

    @given(st.lists(st.text()))
    def test_any(self, topics: list[str]) -> None:
        """
        Several topics select the streams of each.
        """
        self.assertEqual(
            streams_of(topics), frozenset().union(*(streams_of([topic]) for topic in topics))
        )


class DialectTests(SynchronousTestCase):
    """
    Tests for L{dialect_of}.
    """

    def test_choice(self) -> None:
        """
        Only topics under C{threatbus/} select the vast dialect.
        """
        for topic, dialect in [
            ("threatbus/intel", Dialect.VAST),
            ("threatbus/", Dialect.VAST),
            ("threatbus/intelabcdefghij", Dialect.VAST),
            ("threatbus", Dialect.STIX2),
            ("stix2/indicator", Dialect.STIX2),
            ("Threatbus/intel", Dialect.STIX2),
            ("", Dialect.STIX2),
        ]:
            with self.subTest(topic):
                self.assertIs(dialect_of(topic), dialect)


class NewTopicTests(SynchronousTestCase):
    """
    Tests for L{new_topic}.
    """

    def test_stix2(self) -> None:
        """
        A stix2 topic is 32 lower-case letters.
        """
        topic = new_topic("stix2/indicator", Dialect.STIX2)
        self.assertEqual(len(topic), STIX2_TOPIC_LENGTH)
        self.assertEqual(STIX2_TOPIC_LENGTH, 32)
        self.assertLessEqual(set(topic), set(string.ascii_lowercase))

    def test_vast(self) -> None:
        """
        A vast topic is the requested one and 10 lower-case letters, so that the later
        unsubscribe request shows the dialect.
        """
        topic = new_topic("threatbus/intel", Dialect.VAST)
        self.assertEqual(topic[:-10], "threatbus/intel")
        self.assertLessEqual(set(topic[-10:]), set(string.ascii_lowercase))
        self.assertIs(dialect_of(topic), Dialect.VAST)

    def test_unique(self) -> None:
        """
        No topic is repeated, and every letter occurs.
        """
        for dialect in Dialect:
            with self.subTest(dialect):
                topics = [new_topic("threatbus/intel", dialect) for _ in range(1000)]
                self.assertEqual(len(set(topics)), 1000)
                letters = {letter for topic in topics for letter in topic[-10:]}
                self.assertEqual(letters, set(string.ascii_lowercase))
