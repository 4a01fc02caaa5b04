"""
Tests for L{tbvast.engines.search_budget}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines import search_budget
from tbvast.engines.search_budget import SearchBudget
from tbvast.stix.observables import Kind, Observable
from tbvast.values import Entry, Hit, Match

CONJUNCTION = "ab"
"""
The values that the indicator C{"both"} wants together.
"""


def match(*values: str, number: int = 0) -> Match:
    """
    An event that holds values, for each of which there is an indicator; some are
    wanted together too.
    """
    return Match(
        {"number": number},
        "x",
        tuple(
            Hit("f", Kind.DOMAIN, value, (value, "both") if value in CONJUNCTION else (value,))
            for value in values
        ),
    )


ENTRIES = [
    Entry(
        Observable(Kind.DOMAIN, value),
        (value, "both") if value in CONJUNCTION else (value,),
        joint=value in CONJUNCTION,
    )
    for value in "abc"
]


def shown_to(id: str, matches: list[Match]) -> list[list[str]]:
    """
    The values of each event that an indicator gets to see.
    """
    each = ([hit.value for hit in match.hits if id in hit.ids] for match in matches)
    return [values for values in each if values]


class SearchBudgetTests(SynchronousTestCase):
    """
    L{SearchBudget} counts by observable, and by combination.
    """

    def test_each(self) -> None:
        """
        An event stays while any of its observables is below the limit.
        """
        kept = SearchBudget(2).apply([match("c"), match("c"), match("c", "d"), match("c")])
        self.assertEqual(kept, [match("c"), match("c"), match("d")])

    def test_none(self) -> None:
        """
        Without a limit all of them stay.
        """
        found = [match("a")] * 5
        self.assertEqual(SearchBudget(0).apply(found), found)

    def test_rare_beside_frequent(self) -> None:
        """
        An observable below the limit keeps the other hits of its indicator, even those that
        have exceeded the limit.
        """
        kept = SearchBudget(2).apply([match("a")] * 5 + [match("a", "b", "c")])
        self.assertEqual(shown_to("both", kept)[-1], ["a", "b"])
        self.assertEqual(len(shown_to("a", kept)), 2)

    def test_rarely_together(self) -> None:
        """
        Two that are each seen too often are still found together, up to the limit.
        """
        alone = [match("a"), match("b")] * 5
        kept = SearchBudget(2, ENTRIES).apply(alone + [match("a", "b")] * 3 + alone + [match("c")])
        self.assertEqual(shown_to("both", kept).count(["a", "b"]), 2)
        self.assertEqual(len(shown_to("a", kept)), 2)
        self.assertEqual(kept[-1], match("c"))

    def test_narrower_network(self) -> None:
        """
        A network stands for the networks that cover it: observables that are joint with one
        of these are found with it, too.
        """
        wide, narrow, name = (
            Entry(Observable(Kind.NETWORK, "10.0.0.0/8"), ("both",), joint=True),
            Entry(Observable(Kind.NETWORK, "10.1.0.0/16"), ("both", "other")),
            Entry(Observable(Kind.DOMAIN, "a"), ("both",), joint=True),
        )
        of_address, of_name = (
            Hit("f", each.observable.kind, each.observable.value, each.ids)
            for each in (narrow, name)
        )
        alone = [Match({}, "x", (of_address,)), Match({}, "x", (of_name,))]
        budget = SearchBudget(2, [wide, narrow, name])
        budget.apply(alone * 5)
        kept = budget.apply([Match({}, "x", (of_address, of_name))])
        self.assertEqual(shown_to("both", kept), [["10.1.0.0/16", "a"]])
        self.assertEqual(shown_to("other", kept), [])

    def test_bounded(self) -> None:
        """
        Not every combination that there may be is remembered; it is rather let through.
        """
        self.patch(search_budget, "MAX_COMBINATIONS", 1)
        values = [Observable(Kind.DOMAIN, str(number)) for number in range(5)]
        budget = SearchBudget(1, [Entry(each, ("i",), joint=True) for each in values])
        events = [
            Match({}, "x", tuple(Hit("f", o.kind, o.value, ("i",)) for o in (values[0], other)))
            for other in values[1:]
        ]
        budget.apply(events)
        self.assertEqual(budget.apply(events), events[1:])

    @given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, unique=True)), st.integers(1, 3))
    def test_never_more(self, events: list[list[str]], most: int) -> None:
        """
        Of each observable the first so many events are kept, no more and no fewer; and
        so many with those that are wanted together, with all of them.
        """
        found = [match(*values, number=number) for number, values in enumerate(events)]
        kept = SearchBudget(most, ENTRIES).apply(found)
        for value in "abc":
            before = shown_to(value, found)
            self.assertEqual(shown_to(value, kept), [[value]] * min(len(before), most))
        both = [sorted(values) for values in shown_to("both", found) if len(values) == 2]
        after = [sorted(values) for values in shown_to("both", kept) if len(values) == 2]
        self.assertEqual(len(after), min(len(both), most))
