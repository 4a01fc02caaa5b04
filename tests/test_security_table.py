"""
Each line of the table in C{docs/security.md} names tests that exist.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.access_control import Permission

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "security.md"
NAME = re.compile(r"`(test_\w+)\.(\w+)\.(test_\w+)`")


def rows() -> list[list[str]]:
    """
    @return: The cells of each line of the table.
    """
    _, _, section = DOCUMENT.read_text("utf-8").partition("## Who can do what\n")
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def find(module: str, case: str, method: str) -> bool:
    """
    Whether there is such a test.
    """
    package = "tests" if (TESTS / f"{module}.py").exists() else "tests.functional"
    try:
        found = importlib.import_module(f"{package}.{module}")
    except ModuleNotFoundError:
        return False
    return callable(getattr(getattr(found, case, None), method, None))


class TableTests(SynchronousTestCase):
    def test_shown(self) -> None:
        """
        No line is without a test, and no test is missing.
        """
        self.assertGreater(len(rows()), 20)
        for row in rows():
            with self.subTest(row):
                self.assertEqual(len(row), 4)
                names = NAME.findall(row[-1])
                self.assertEqual(", ".join(f"`{'.'.join(name)}`" for name in names), row[-1])
                self.assertTrue(names)
                for name in names:
                    self.assertTrue(find(*name), name)

    def test_missing(self) -> None:
        """
        A name without a test is found out.
        """
        self.assertTrue(find("test_security_table", "TableTests", "test_missing"))
        self.assertFalse(find("test_security_table", "TableTests", "test_other"))
        self.assertFalse(find("test_security_table", "OtherTests", "test_missing"))
        self.assertFalse(find("test_other", "OtherTests", "test_other"))

    def test_permissions(self) -> None:
        """
        Every permission has a line.
        """
        who = " ".join(row[0] for row in rows())
        for permission in Permission:
            self.assertIn(f"`{permission.value}`", who)
