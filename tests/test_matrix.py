"""
Tests for L{devtools.matrix}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from devtools.matrix import NEWEST, OLDEST, requirements, summary


class MatrixTests(SynchronousTestCase):
    """
    The requirements of the environments, and the results of the runs.
    """

    def test_requirements(self) -> None:
        """
        The oldest versions are the lower bounds; the packages of the tests are there, other tools
        are not.
        """
        project = {
            "dependencies": ["a>=1.2", "b>=1.5,<2", "c>=3; python_version >= '3.12'"],
            "optional-dependencies": {"test": ["hypothesis>=6", "ruff>=1"]},
        }
        self.assertEqual(
            requirements(project, OLDEST),
            ["a==1.2", "b==1.5", "c==3; python_version >= '3.12'", "hypothesis>=6"],
        )
        self.assertEqual(requirements(project, NEWEST), [*project["dependencies"], "hypothesis>=6"])

    def test_summary(self) -> None:
        """
        Only a test that passed counts as such, and a run without a summary has failed.
        """
        for output, status, expected in [
            ("Ran 9 tests in 1s\n\nPASSED (successes=9)\n", 0, (9, 0)),
            ("PASSED (skips=1, successes=8)\n", 0, (8, 1)),
            ("FAILED (expectedFailures=1, failures=2, successes=6)\n", 1, (6, 2)),
            ("PASSED (successes=9)\n", 1, (9, 1)),
            ("ERROR: No matching distribution found\n", 1, (0, 1)),
            ("PASSED (successes=1)\nFAILED (errors=1, successes=8)\n", 1, (8, 1)),
        ]:
            with self.subTest(output):
                self.assertEqual(summary(output, status), expected)
