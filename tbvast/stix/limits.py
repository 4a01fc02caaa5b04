"""
How large a document may be, so that every later hop can carry it.

The hops put more around a document: the frames of pub and sub, a request, a snapshot
envelope, and the sighting, which repeats its indicator. All of them have to fit into the
shortest message that a service may be configured to take.
"""

from __future__ import annotations

LARGEST_INDICATOR = 1 << 20
"""
The most bytes of an indicator.
"""

LARGEST_SIGHTING = 4 << 20
"""
The most bytes of a sighting, with the indicator and the event in it.
"""

SHORTEST_MESSAGE_LIMIT = 8 << 20
"""
The least that C{max_message_bytes} may be set to: room for any document, with the
envelopes around it.
"""

DEEPEST_INDICATOR = 32
"""
How deep arrays and objects may nest in an indicator, itself included.
"""

DEEPEST_SIGHTING = 64
"""
How deep they may nest in a sighting: room for an indicator, and for an event, in it.
Every decoder on the way takes some hundreds.
"""

LEAST_INTEGER = -(1 << 63)
MOST_INTEGER = (1 << 64) - 1
"""
What an integer may be: a signed or an unsigned one of 64 bits.
"""

FIRST_YEAR = 1000
"""
The first year of a time in UTC; the last is 9999. Earlier ones are written with fewer than
four digits by Python on Linux, which nobody can read again.
"""

LONGEST_PATTERN = 1 << 16
"""
The most characters of a STIX pattern. The parser of the old programs takes a second for
some hundred thousand.
"""

MOST_TERMS = 400
"""
The most comparisons and qualifiers of a STIX pattern; a list of values is one comparison.
The parser of the old programs recurses once for each, and four times for each of
L{tbvast.intel.grammar.DEEPEST} parentheses; it fails from 979 on.
"""

MOST_STEPS = 50
"""
The most steps of an object path in a STIX pattern, which the same parser recurses for.
"""

MOST_SELECTORS = 100
LONGEST_MARKED_LIST = 1000
"""
The most selectors of a document's granular markings, and the most items of a list in a
document that has any: the old programs walk through all of it for each selector, and
through a list for each of its items.
"""
