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
