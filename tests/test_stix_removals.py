"""
Tests for L{tbvast.stix.admission.bare_removal}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import Invalid
from tbvast.protocol.frames import render
from tbvast.protocol.topics import Dialect
from tbvast.stix.admission import admit, admit_indicator, bare_removal
from tbvast.stix.indicators import Operation
from tests.doubles import an_indicator, indicator_id

VERSION = 1_716_000_000_123_456


class BareRemovalTests(SynchronousTestCase):
    """
    Tests for L{bare_removal}.
    """

    def test_unknown(self) -> None:
        """
        Of nothing but an id, it is a removal that everybody can read, of no value.
        """
        item = bare_removal(indicator_id(1), VERSION)
        self.assertEqual(
            (item.id, item.modified, item.operation),
            (indicator_id(1), VERSION, Operation.REMOVE),
        )
        self.assertEqual(admit_indicator(item.raw), item)
        for dialect, count in ((Dialect.STIX2, 1), (Dialect.VAST, 0)):
            self.assertEqual(len(render(dialect, item)), count)

    def test_pattern(self) -> None:
        """
        It has the pattern, if that can still be read.
        """
        raw = an_indicator(1, x_size=0).raw.replace(b'"x_size":0', b'"x_size":' + b"1" * 5000)
        item = bare_removal(indicator_id(1), VERSION, raw)
        self.assertEqual(item.pattern, an_indicator(1).pattern)
        self.assertEqual(len(render(Dialect.VAST, item)), 1)

    def test_no_pattern(self) -> None:
        """
        A pattern that is no longer valid is not repeated.
        """
        damaged = an_indicator(1).raw.replace(b"[ipv4", b"ipv4")
        for raw in (b"", b"\xff", damaged, b'{"pattern":"[a:b = 1"}', b"[" * 100_000):
            with self.subTest(raw[:20]):
                self.assertEqual(
                    bare_removal(indicator_id(1), VERSION, raw),
                    bare_removal(indicator_id(1), VERSION),
                )

    def test_versions(self) -> None:
        """
        Any version will do.
        """
        for version in (0, -(1 << 62), 1 << 62):
            self.assertEqual(bare_removal(indicator_id(1), version).modified, version)

    def test_admitted(self) -> None:
        """
        Whatever is known of the indicator, its removal may enter every bus.
        """
        nameless = b'{"pattern":"","pattern_type":"snort"}'
        for version, raw in ((-(1 << 62), b""), (VERSION, nameless)):
            item = bare_removal(indicator_id(1), version, raw)
            self.assertEqual(admit(item.raw).raw, item.raw)

    def test_id(self) -> None:
        """
        There is none for an id that could not enter.
        """
        nil = "indicator--00000000-0000-0000-0000-000000000000"
        for id in (nil, "", "x--y--" + nil[11:], indicator_id(1)[:-1] + "\ufffd"):
            self.assertRaises(Invalid, bare_removal, id, VERSION)
