"""
Tests for L{tbvast.bus.unread_answers}.
"""

from __future__ import annotations

import functools

from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.unread_answers import CLIENT_BYTES, LOOKS, TOTAL_BYTES, UnreadAnswers
from tbvast.errors import LimitExceeded


class UnreadAnswersTests(SynchronousTestCase):
    """
    Tests for L{UnreadAnswers}.
    """

    def setUp(self) -> None:
        self.unread = UnreadAnswers()
        self.read: set[str] = set()

    def sent(self, client: str, size: int) -> None:
        self.unread.sent(client, size, lambda: client in self.read)

    def refused(self, client: str) -> bool:
        try:
            self.unread.check(client)
        except LimitExceeded:
            return True
        return False

    def test_one_client(self) -> None:
        """
        A client that has not read too much gets no more until it has.
        """
        self.sent("one", CLIENT_BYTES - 1)
        self.assertFalse(self.refused("one"))
        self.sent("one", 1)
        self.assertTrue(self.refused("one"))
        self.assertFalse(self.refused("two"))
        self.read.add("one")
        self.assertFalse(self.refused("one"))

    def test_all(self) -> None:
        """
        So does each that has any if all have too much; one that has none gets its answer.
        """
        for number in range(TOTAL_BYTES // CLIENT_BYTES):
            self.sent(str(number), CLIENT_BYTES - 1)
        self.sent("small", 1000)
        self.assertTrue(self.refused("small"))
        self.assertFalse(self.refused("none"))

    def test_gone(self) -> None:
        """
        The answers of clients that never ask again are found to be gone, too.
        """
        for number in range(TOTAL_BYTES // CLIENT_BYTES):
            self.sent(str(number), CLIENT_BYTES - 1)
            self.read.add(str(number))
        for _ in range(TOTAL_BYTES // CLIENT_BYTES):
            self.sent("small", 1000)
        self.assertFalse(self.refused("small"))

    def test_many(self) -> None:
        """
        Few of many answers are looked at, the others later.
        """
        looked: list[int] = []

        def look(number: int) -> bool:
            looked.append(number)
            return number >= 3 * LOOKS

        for number in range(4 * LOOKS):
            self.unread.sent("one", CLIENT_BYTES // LOOKS, functools.partial(look, number))
        looked.clear()
        self.assertTrue(self.refused("one"))
        self.assertEqual(len(looked), LOOKS)
