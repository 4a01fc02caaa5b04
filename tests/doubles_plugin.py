"""
What tests of the plugin ask for and allow.
"""

from __future__ import annotations

from typing import Any

from tbvast.plugin.subscriptions import Limits
from tbvast.wire.manage import Subscribe
from tbvast.wire.topics import Dialect, dialect_of


def a_request(*topics: str, **changes: Any) -> Subscribe:
    """
    A subscribe request; to C{stix2/indicator} if no topic is named.
    """
    topics = topics or ("stix2/indicator",)
    fields: dict[str, Any] = {
        "topics": topics,
        "snapshot": 0,
        "dialect": dialect_of(topics[0]) if len(topics) == 1 else Dialect.STIX2,
        "protocol": "",
        "name": "",
        **changes,
    }
    return Subscribe(**fields)


def some_limits(**changes: Any) -> Limits:
    """
    Limits that tests do not reach, and timeouts of 15 and 60 seconds.
    """
    fields: dict[str, Any] = {
        "subscriptions": 2000,
        "client_subscriptions": 1000,
        "topics": 16,
        "queue_messages": 100_000,
        "queue_bytes": 1 << 26,
        "heartbeat_timeout": 15.0,
        "detached_timeout": 60.0,
        **changes,
    }
    return Limits(**fields)
