"""
The limits of a document, so that every later hop can carry it.

The hops wrap a document: in the frames of pub and sub, in a request, in a snapshot
envelope, and in a sighting, which repeats its indicator. Each of these has to fit into the
lowest message limit that a service may be configured with.
"""

from __future__ import annotations

LARGEST_INDICATOR = 1 << 20
LARGEST_SIGHTING = 4 << 20
"""
The most bytes of an indicator, and of a sighting with the indicator and the event in it.
"""

SHORTEST_MESSAGE_LIMIT = 8 << 20
"""
The lowest valid C{max_message_bytes}: room for any document, with its envelopes.
"""

DEEPEST_INDICATOR = 32
DEEPEST_SIGHTING = 64
"""
The most levels of arrays and objects in an indicator, itself included, and in a sighting, which
has room for an indicator and an event. Every decoder on the way can read some hundreds.
"""

LEAST_INTEGER = -(1 << 63)
MOST_INTEGER = (1 << 64) - 1
"""
The range of an integer: signed or unsigned, of 64 bits.
"""

FIRST_YEAR = 1000
"""
The first year of a time in UTC; the last is 9999. Python on Linux writes an earlier year with
fewer than four digits, and no reader accepts that.
"""

LONGEST_PATTERN = 1 << 16
"""
The most characters of a STIX pattern. The parser of the old programs needs a second for
some hundred thousand.
"""

MOST_TERMS = 400
"""
The most comparisons and qualifiers of a STIX pattern; a list of values is one comparison.
The parser of the old programs recurses once for each, and four times for each of
L{tbvast.stix.pattern_grammar.DEEPEST} parentheses; it fails from 979 on.
"""

MOST_TOKENS = 3000
"""
The most tokens of a STIX pattern: names, values, operators, brackets. A list of values has two for
each. The bus reads a pattern in one turn of its reactor, and this many take some ten milliseconds.
"""

MOST_VALUES = 20_000
"""
The most values in a document: of its arrays and objects, and of those in them. The bus reads a
document in one turn of its reactor.
"""

MOST_STEPS = 50
"""
The most steps of an object path in a STIX pattern. The same parser recurses for each.
"""

MOST_SELECTORS = 100
LONGEST_MARKED_LIST = 1000
"""
The most selectors of a document's granular markings, and the most items of a list in a
document that has any: the old programs walk through the whole document for each selector,
and through a list for each of its items.
"""
