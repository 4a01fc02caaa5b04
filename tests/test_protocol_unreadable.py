"""
Tests for L{tbvast.protocol.unreadable}.
"""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tbvast.protocol.unreadable import KEPT_BYTES, MOST_IDS, REASON_LENGTH, ids_in, unreadable
from tests.doubles import indicator_document, indicator_id, sighting_id


class UnreadableTests(SynchronousTestCase):
    """
    Tests for L{unreadable}.
    """

    def test_bounded(self) -> None:
        """
        A description is bounded, and can be sent to another process.
        """
        for number in (-1, 0, 5, 1 << 63, 1 << 70):
            raw = b"x" * 2 * KEPT_BYTES + b'"id":"%b"' % indicator_id(1).encode()
            found = unreadable("\ud800" * 1000, raw, number)
            self.assertEqual(len(found.raw), KEPT_BYTES)
            self.assertEqual(len(found.reason), REASON_LENGTH)
            self.assertEqual(found.number, 5 if number == 5 else 0)
            self.assertEqual(found.ids, (indicator_id(1),))
            msgspec.msgpack.encode(found)

    def test_ids(self) -> None:
        """
        The ids are the readable ones of indicators and sightings.
        """
        raw = indicator_document(1) + b'{"id" : "%b"' % sighting_id(2).encode()
        self.assertEqual(ids_in(raw), (indicator_id(1), sighting_id(2)))
        for raw in (b"", b'"id":"identity--00000000-0000-4000-8000-000000000001"', b'"id":"x'):
            self.assertEqual(ids_in(raw), ())
        many = b",".join(indicator_document(n) for n in range(MOST_IDS + 1))
        self.assertEqual(ids_in(many), ())
