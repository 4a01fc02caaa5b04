"""
What tests of the plugin ask for and allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zmq.utils import z85

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


def clients_file(path: Path, **may: str) -> dict[str, str]:
    """
    Write a file of clients.

    @param may: What each may do, as it stands in the file, by name.
    @return: Their keys, by name.
    """
    keys = {name: z85.encode(f"{number:032}".encode()).decode() for number, name in enumerate(may)}
    path.write_text("".join(f"{keys[name]} {name} {may[name]}\n" for name in may))
    return keys
