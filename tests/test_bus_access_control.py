"""
Tests for L{tbvast.bus.access_control}.
"""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zmq.utils import z85

from tbvast.bus.access_control import EVERYTHING, AccessControl, Client, Permission, read_clients
from tbvast.bus.journal.values import EVERYBODY
from tbvast.errors import StartupRefused
from tbvast.protocol.topics import Stream


def a_key(number: int = 0) -> str:
    return z85.encode(f"{number:032}".encode()).decode()


class GateTestCase(SynchronousTestCase):
    """
    A file of clients.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def write(self, *lines: str) -> None:
        self.path.write_text("".join(line + "\n" for line in lines), "utf-8")


class ReadTests(GateTestCase):
    """
    Tests for L{read_clients}.
    """

    def test_clients(self) -> None:
        """
        Each line has a key, a name and permissions; without permissions, all of them.
        """
        self.write(
            "# those who are let in",
            "",
            f"{a_key(1)} one",
            f"   {a_key(2)}\ttwo.2@host-a_b   publish-intel  ",
            "   # not this one",
            f"{a_key(3)} three subscribe-intel,subscribe-sightings",
        )
        self.assertEqual(
            read_clients(self.path),
            {
                a_key(1): Client(a_key(1), "one", EVERYTHING),
                a_key(2): Client(a_key(2), "two.2@host-a_b", frozenset([Permission.PUBLISH_INTEL])),
                a_key(3): Client(
                    a_key(3),
                    "three",
                    frozenset([Permission.SUBSCRIBE_INTEL, Permission.SUBSCRIBE_SIGHTINGS]),
                ),
            },
        )

    def test_nobody(self) -> None:
        """
        A file may have no clients.
        """
        self.write()
        self.assertEqual(read_clients(self.path), {})

    def test_refused(self) -> None:
        """
        An error is reported in one line with the number of the faulty line.
        """
        for line, reason in (
            (a_key(2), "KEY NAME [PERMISSION,…] was expected"),
            (f"{a_key(2)} two publish-intel, subscribe-intel", "KEY NAME"),
            ("short two", "is not a public key of 40 characters"),
            (f"{a_key(2)}0 two", "is not a public key"),
            (f"{'~' * 40} two", "is not a public key"),
            (f"{'é' * 40} two", "is not a public key"),
            (f"{'%' * 40} two", "is not a public key"),
            (f"{a_key(2)} zwö", "is not a name of letters"),
            (f"{a_key(2)} {'x' * 65}", "is not a name of letters"),
            (f"{a_key(2)} two fly", "'fly' is not a list of subscribe-intel, subscribe-sight"),
            (f"{a_key(2)} two publish-intel,", "is not a list of"),
            (f"{a_key(2)} two Publish-Intel", "is not a list of"),
            (f"{a_key(1)} two", "stands there twice"),
            (f"{a_key(2)} one", "one: that key or name stands there twice"),
        ):
            with self.subTest(line):
                self.write("# clients", f"{a_key(1)} one", line)
                error = self.assertRaises(StartupRefused, read_clients, self.path)
                self.assertIn(f"{self.path}, line 3: ", str(error))
                self.assertIn(reason, str(error))
                self.assertNotIn("\n", str(error))

    def test_unreadable(self) -> None:
        """
        A file that is not there, or is no text, is refused.
        """
        self.assertIn(str(self.path), str(self.assertRaises(StartupRefused, self.read)))
        self.path.write_bytes(b"\xff\xfe")
        self.assertRaises(StartupRefused, self.read)

    def read(self) -> None:
        read_clients(self.path)

    @given(st.text() | st.text("#%0aZ ,\n", max_size=60) | st.text(z85.Z85CHARS.decode()))
    def test_any_text(self, text: str) -> None:
        """
        A file is read or refused, whatever it says.
        """
        self.path.write_text(f"{text}\n{text[:40].ljust(40, '%')} one", "utf-8", newline="")
        try:
            read_clients(self.path)
        except StartupRefused:
            pass


class GateTests(GateTestCase):
    """
    Tests for L{AccessControl}.
    """

    def lines(self, **may: str) -> list[str]:
        return [f"{a_key(n)} {name} {may[name]}" for n, name in enumerate(sorted(may))]

    def test_open(self) -> None:
        """
        Without a file, everybody has every permission and no name.
        """
        access = AccessControl(None)
        for user in ("", a_key(), "127.0.0.1"):
            self.assertTrue(access.may_connect(user))
            self.assertTrue(all(access.may(user, permission) for permission in Permission))
            self.assertEqual(access.name(user), "")
            self.assertEqual(access.publisher(user), EVERYBODY)
        self.assertEqual((access.reload(), len(access)), (frozenset(), 0))

    def test_clients(self) -> None:
        """
        With a file, its clients have the permissions in it, and other users have none.
        """
        self.write(*self.lines(a="publish-intel", b="subscribe-intel,publish-sightings"))
        access = AccessControl(self.path)
        self.assertEqual(len(access), 2)
        allowed = {user: [p for p in Permission if access.may(user, p)] for user in self.users(3)}
        self.assertEqual(
            list(allowed.values()),
            [
                [Permission.PUBLISH_INTEL],
                [Permission.SUBSCRIBE_INTEL, Permission.PUBLISH_SIGHTINGS],
                [],
            ],
        )
        self.assertEqual([access.may_connect(user) for user in self.users(3)], [True, True, False])
        self.assertEqual([access.name(user) for user in self.users(3)], ["a", "b", ""])
        self.assertFalse(access.may_connect(""))

    def test_may_subscribe(self) -> None:
        """
        It takes the right to each stream; and for none, to be known at all.
        """
        self.write(*self.lines(a="subscribe-intel", b="subscribe-intel,subscribe-sightings"))
        access = AccessControl(self.path)
        for streams, expected in (
            ([Stream.INTEL], [True, True, False]),
            ([Stream.INTEL, Stream.SIGHTING], [False, True, False]),
            ([], [True, True, False]),
        ):
            found = [access.may_subscribe(user, streams) for user in self.users(3)]
            self.assertEqual(found, expected)
        self.assertTrue(AccessControl(None).may_subscribe("", list(Stream)))

    def users(self, count: int) -> list[str]:
        return [a_key(number) for number in range(count)]

    def test_unusable(self) -> None:
        """
        A bus does not begin with a file that cannot be used.
        """
        self.assertRaises(StartupRefused, AccessControl, self.path)

    def test_reload(self) -> None:
        """
        Reloading returns the clients that were removed or restricted, but not those that kept
        or gained permissions.
        """
        self.write(
            *self.lines(
                a="publish-intel",
                b="publish-intel,subscribe-intel",
                c="publish-intel",
                d="publish-intel",
            )
        )
        access = AccessControl(self.path)
        self.write(
            *self.lines(
                a="publish-intel",
                b="subscribe-intel,subscribe-sightings",
                c="publish-intel,subscribe-intel",
            ),
            f"{a_key(9)} e",
        )
        with capturedLogs() as events:
            self.assertEqual(access.reload(), {a_key(1), a_key(3)})
        self.assertEqual((events[0]["count"], events[0]["lost"]), (4, 2))
        self.assertTrue(access.may(a_key(9), Permission.PUBLISH_INTEL))
        self.assertFalse(access.may_connect(a_key(3)))
        self.assertEqual(access.reload(), frozenset())

    def test_reload_fails(self) -> None:
        """
        A file that cannot be used changes nothing, and the log says why.
        """
        self.write(*self.lines(a="publish-intel"))
        access = AccessControl(self.path)
        self.write("nonsense")
        with capturedLogs() as events:
            self.assertEqual(access.reload(), frozenset())
        self.assertIn("line 1", events[0]["reason"])
        self.assertTrue(access.may(a_key(0), Permission.PUBLISH_INTEL))
