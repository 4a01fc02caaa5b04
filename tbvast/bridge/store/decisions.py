"""
Decisions about indicators: their state, the version that counts, and their terms. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tbvast.errors import Invalid, PatternUnmatchable
from tbvast.stix.indicators import STIX, Indicator, Operation
from tbvast.stix.observables import Observable, unescaped
from tbvast.stix.pattern_conditions import Term, matchable, sure_observable

Terms = dict[Observable, bool]
"""
The observables of an indicator. A joint one (C{True}) does not suffice alone: the same event
has to contain others of the indicator, too.
"""

NO_TERMS: Terms = {}

ENDED, IN_FORCE, NOT_YET = range(3)
"""
The values of an indicator's C{state}: plain numbers, which SQLite takes as they are.
"""

_REMOVE = Operation.REMOVE
# A module's global is found faster than a member of an enumeration.


class StoredIndicator(msgspec.Struct, array_like=True, gc=False):
    """
    The row of an indicator, without its document and observables.

    @ivar digest: The digest of its id.
    @ivar modified: The date of its version, in microseconds since the epoch.
    @ivar state: L{ENDED}, L{IN_FORCE} or L{NOT_YET}.
    @ivar searched: Whether past events have been searched for it.
    @ivar generation: The number of the last snapshot that contained it.
    @ivar unmatched: The reasons why it is not or only partly matched.
    @ivar is_new: Whether there is no such row yet.
    """

    number: int
    id: str
    digest: int
    modified: int
    state: int
    searched: bool
    generation: int
    unmatched: tuple[str, ...]
    is_new: bool = False


def state_at(indicator: Indicator, moment: int) -> int:
    """
    The state of an indicator at a date, in microseconds since the epoch.
    """
    start, end = indicator.valid_from, indicator.valid_until
    if indicator.operation is _REMOVE or (end is not None and end <= moment):
        return ENDED
    return NOT_YET if start is not None and start > moment else IN_FORCE


def changes_anything(
    indicator: Indicator,
    state: int,
    known: StoredIndicator,
    documents: Mapping[str, bytes],
    moment: int | None,
) -> bool:
    """
    Whether an indicator changes the stored one.

    @param state: Its state now.
    @param documents: The stored documents, by id.
    @param moment: The bridge's date, in microseconds since the epoch; C{None} if the bus
        has already decided between versions.
    """
    lasts = known.state != ENDED
    if indicator.operation is _REMOVE:
        return lasts
    if lasts and indicator.raw == documents[indicator.id]:
        return state == ENDED
    if moment is not None:
        version, before = min(indicator.modified, moment), min(known.modified, moment)
        if version < before or (not lasts and version == before != moment):
            return False
    return lasts or state != ENDED


def terms_of(indicator: Indicator) -> tuple[Terms, tuple[str, ...]]:
    """
    Extract the terms of an indicator.

    @return: The terms that are matched, and the reasons why others are not.
    """
    if indicator.pattern is None:
        return NO_TERMS, ("no pattern",)
    if indicator.surely_matchable:  # as most are
        return {sure_observable(indicator.pattern): False}, ()
    if indicator.pattern_type != STIX:
        return NO_TERMS, (f"pattern type {indicator.pattern_type}",)
    try:
        found = matchable(indicator.pattern)
    except PatternUnmatchable as e:
        return NO_TERMS, (e.reason,)
    except Invalid as e:
        return NO_TERMS, (f"{e.field} is not {e.expected}",)
    if isinstance(found.condition, Term):
        terms = {found.condition.observable: False}
    else:
        alone = {term.observable for term in found.alone}
        terms = {observable: observable not in alone for observable in found.observables}
    for observable, joint in list(terms.items()):
        if (as_logged := unescaped(observable)) is not None:
            terms[as_logged] = joint
    return terms, tuple(dict.fromkeys(found.unmatched)) if found.unmatched else ()
