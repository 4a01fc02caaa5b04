"""
The plain matcher that the bench compares with.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.slow_matcher import key, matches


class SlowMatcherTests(SynchronousTestCase):
    def test_matches(self) -> None:
        """
        An event is matched by the values and networks it holds, and no others.
        """
        event = {"src_ip": "10.1.2.3", "http": {"hostname": "A.example.", "url": "/x"}}
        hits = {("ip", "10.1.2.3"), ("cidr", "10.1.0.0/16"), ("domain", "a.example")}
        misses = {("ip", "10.1.2.4"), ("cidr", "10.2.0.0/16"), ("domain", "example")}
        self.assertEqual(matches(event, hits | misses), hits)

    def test_key(self) -> None:
        """
        An event is the same one in the file and as the engine shows it.
        """
        there = {"ts": "2011-08-14T20:34:02.445519999Z", "uid": "C1"}
        self.assertEqual(key({"ts": "2011-08-14T20:34:02.445520Z", "uid": "C1"}), key(there))
