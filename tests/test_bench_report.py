"""
What the bench commands make of their measurements.
"""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from bench.report import figure, machine, percentile, ratio, spread, table


class ReportTests(TestCase):
    """
    Figures of several runs.
    """

    def test_percentile(self) -> None:
        """
        It is one of the values, whatever their order.
        """
        values = [float(n) for n in range(100, 0, -1)]
        self.assertEqual([percentile(values, p) for p in (0, 50, 99, 100)], [1, 50, 99, 100])
        self.assertEqual(percentile([7.0], 99), 7)

    def test_figure(self) -> None:
        """
        No digits are printed that say nothing.
        """
        given = [123456.7, 42.19, 4.219, 0.4219, 0.0]
        self.assertEqual(list(map(figure, given)), ["123,457", "42.2", "4.22", "0.422", "0.000"])

    def test_spread(self) -> None:
        """
        The median comes with the range, unless there was one run only, or none.
        """
        self.assertEqual(spread([3.0, 1.0, 200.0]), "3.00 (1.00..200)")
        self.assertEqual(spread([3.0]), "3.00")
        self.assertEqual(spread([]), "-")

    def test_ratio(self) -> None:
        """
        Medians are compared, if there is something to compare with.
        """
        self.assertEqual(ratio([1.0, 2.0, 30.0], [4.0]), "0.50")
        self.assertEqual(ratio([1.0], []), "-")
        self.assertEqual(ratio([1.0], [0.0]), "-")

    def test_table(self) -> None:
        """
        Columns are as wide as what is widest in them.
        """
        self.assertEqual(
            table(["what", "n"], [["a", "1,000"]]),
            "| what | n     |\n| ---- | ----- |\n| a    | 1,000 |",
        )

    def test_machine(self) -> None:
        """
        Cores and versions are named.
        """
        for word in ("cores", "Python", "libzmq", "tbvast", "pyzmq", "Twisted"):
            self.assertIn(word, machine())
