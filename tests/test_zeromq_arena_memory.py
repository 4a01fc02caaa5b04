"""
Tests for L{tbvast.zeromq.arena_memory}.
"""

from __future__ import annotations

import threading

from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.arena_memory import arena_memory

SIZE = 1 << 24


class ArenaMemoryTests(SynchronousTestCase):
    """
    Tests for L{arena_memory}.
    """

    def test_other_thread(self) -> None:
        """
        Blocks that another thread has allocated count until they are freed, those of the first
        thread do not.
        """
        before = arena_memory()
        mine = [bytes(1000) for _ in range(SIZE // 1000)]
        self.assertLess(arena_memory() - before, SIZE // 4)
        theirs: list[bytes] = []
        thread = threading.Thread(
            target=lambda: theirs.extend(bytes(1000) for _ in range(SIZE // 1000))
        )
        thread.start()
        thread.join()
        self.assertGreater(arena_memory() - before, SIZE * 3 // 4)
        del mine
        theirs.clear()
        self.assertLess(arena_memory() - before, SIZE // 4)
