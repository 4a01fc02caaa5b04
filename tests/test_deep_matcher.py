"""
The matcher that knows no fields, with which the bench compares.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.deep_matcher import leaves, observables

DIGITS = "d41d8cd98f00b204e9800998ecf8427e"


class DeepMatcherTests(SynchronousTestCase):
    """
    Tests for L{tests.deep_matcher}.
    """

    def found(self, event: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
        return {value: sorted(paths) for value, paths in observables(event).items()}

    def test_leaves(self) -> None:
        """
        All texts are found, with the paths of their fields.
        """
        event = {"a": {"b": "1"}, "c": ["2", {"d": "3"}], "e.f": "4", "g": 5, "h": None}
        self.assertEqual(
            list(leaves(event)), [("a.b", "1"), ("c[]", "2"), ("c[].d", "3"), ("e.f", "4")]
        )

    def test_within(self) -> None:
        """
        Observables are found within texts.
        """
        event = {
            "subject": "C=US, CN=Evil.Example",
            "proxied": ["X-FORWARDED-FOR -> 192.0.2.1"],
            "asked": "evil.example:443",
            "xff": "[2001:db8::1]:80, ::ffff:192.0.2.2",
            "from": "Some One <One@Mail.Example>",
        }
        self.assertEqual(
            self.found(event),
            {
                ("domain", "evil.example"): ["asked", "subject"],
                ("ip", "192.0.2.1"): ["proxied[]"],
                ("ip", "2001:db8::1"): ["xff"],
                ("ip", "192.0.2.2"): ["xff"],
                ("email", "one@mail.example"): ["from"],
            },
        )

    def test_digits(self) -> None:
        """
        The field tells what digits are of; the bridge keeps these kinds apart, too.
        """
        event = {"md5": DIGITS, "ja3": {"hash": DIGITS}, "ja3s": DIGITS, "fingerprint": DIGITS}
        self.assertEqual(
            self.found(event),
            {
                ("md5", DIGITS): ["md5"],
                ("ja3", DIGITS): ["ja3.hash"],
                ("ja3s", DIGITS): ["ja3s"],
                ("certificate", DIGITS): ["fingerprint"],
            },
        )

    def test_whole(self) -> None:
        """
        Other texts are observables as they are.
        """
        event = {
            "refer": "HTTP://A.Example:80/X?y#z",
            "hw": "00-00-5E-00-53-01",
            "file": {"path": "C:\\tmp\\Evil.exe"},
            "user_agent": "Evil/1 (x)",
            "version": "7.0.3",
        }
        self.assertEqual(
            self.found(event),
            {
                ("url", "a.example/X?y"): ["refer"],
                ("mac", "00:00:5e:00:53:01"): ["hw"],
                ("file-name", "Evil.exe"): ["file.path"],
                ("user-agent", "Evil/1 (x)"): ["user_agent"],
            },
        )
