"""
The engine as its user sees it: asked by its own command, without tbvast's code.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tbvast.engines import binaries

TABLE = re.compile(r"tbvast_[0-9a-f]{16}_(?:ip|net|str)")
"""
The names of the tables where a bridge keeps what arriving events are matched against.
"""

LIMIT = 60.0
"""
Seconds that a call may take.
"""


class Node:
    """
    A node that somebody else runs.
    """

    def __init__(self, client: Path) -> None:
        """
        @param client: The configuration file of the node's clients.
        """
        self._command = [
            binaries.find_client(),
            f"--config={client}",
            "--connection-timeout=5s",
            "--console-verbosity=error",
        ]

    def run(self, pipeline: str, text: bytes = b"", limit: float = LIMIT) -> bytes | None:
        """
        @return: What a pipeline printed; C{None} if it failed, or took too long.
        """
        try:
            done = subprocess.run(
                [*self._command, pipeline], input=text, capture_output=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def import_events(self, events: Iterable[dict[str, Any]], limit: float = LIMIT) -> bool:
        """
        @param events: Of Suricata, all of one type.
        @return: Whether they are stored; if not, nobody knows.
        """
        text = "".join(json.dumps(event) + "\n" for event in events)
        return self.run("from_stdin { read_suricata } | import", text.encode(), limit) is not None

    def held(self) -> Counter[tuple[str, str]] | None:
        """
        What the tables hold: how often each indicator's id stands with each value; C{None}
        if the node does not answer.
        """
        found: Counter[tuple[str, str]] = Counter()
        listed = self.run("context_list\nselect name\nwrite_ndjson")
        if listed is None:
            return None
        names = [json.loads(row)["name"] for row in listed.splitlines()]
        for table in filter(TABLE.fullmatch, names):
            said = self.run(f'context_inspect "{table}"\nselect value\nwrite_ndjson')
            if said is None:
                return None
            for row in said.splitlines():
                entry = json.loads(row)["value"]
                found.update((id, entry["v"]) for id in entry["ids"])
        return found

    def stored(self, field: str) -> set[int] | None:
        """
        The numbers that the stored events have in a field.
        """
        said = self.run(f"export\nselect number={field}?\nwrite_ndjson")
        if said is None:
            return None
        numbers = (json.loads(row)["number"] for row in said.splitlines())
        return {number for number in numbers if number is not None}


def flow(number: int, address: str) -> dict[str, Any]:
    """
    An event that holds an address.

    @param number: Tells it from all others.
    """
    return {
        "timestamp": "2024-03-01T12:00:00.000000+0000",
        "flow_id": number,
        "event_type": "flow",
        "src_ip": "10.255.255.1",
        "dest_ip": address,
        "flow": {"pkts_toserver": 1},
    }
