"""
Counts what is not sighted, sighted wrongly, or twice, against a plain, slow matcher.

    python bench/recall.py FILE... [--each 100] [--others 5000]

Values are drawn from the telemetry, with others that are not in it. Plugin, bridge and
engine run as processes: once with the indicators first, once with the events first. The
exit status is 0 if nothing was missed, false or doubled.
"""

from __future__ import annotations

import argparse
import gzip
import ipaddress
import json
import random
import sqlite3
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.way import Way
from tests import slow_matcher
from tests.functional.components import import_events
from tests.slow_matcher import Event, Value

QUIET = 8.0
"""
Seconds without a new sighting after which no more are waited for.
"""

LIMIT = 300.0
"""
Seconds to wait for sightings in all.
"""

PATTERNS = {
    "domain": "[domain-name:value = '{}']",
    "url": "[url:value = 'http://{}']",
    "email": "[email-addr:value = '{}']",
    "md5": "[file:hashes.MD5 = '{}']",
    "sha1": "[file:hashes.'SHA-1' = '{}']",
    "sha256": "[file:hashes.'SHA-256' = '{}']",
}


def document(value: Value) -> dict[str, Any]:
    kind, text = value
    family = "ipv6" if ":" in text else "ipv4"
    pattern = PATTERNS.get(kind, f"[{family}-addr:value = '{{}}']").format(text)
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid5(uuid.NAMESPACE_OID, f'{kind} {text}')}",
        "created": "2024-01-01T00:00:00Z",
        "modified": "2024-01-01T00:00:00Z",
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": "2000-01-01T00:00:00Z",
    }


def draw(events: list[Event], each: int, others: int) -> list[Value]:
    """
    Values that are in the events, of every kind, and some that are not.
    """
    by_kind: dict[str, set[str]] = defaultdict(set)
    for event in events:
        for value in filter(slow_matcher.drawable, slow_matcher.values(event)):
            by_kind[value[0]].add(value[1])
    for address in by_kind["ip"]:
        if ":" not in address:
            by_kind["cidr"].add(str(ipaddress.ip_network(f"{address}/24", strict=False)))
    chance = random.Random(1)
    drawn = [
        (kind, text)
        for kind, texts in sorted(by_kind.items())
        for text in chance.sample(sorted(texts), min(each, len(texts)))
    ]
    return drawn + [("domain", f"n{number}.not-there.example") for number in range(others)]


class Recall(Way):
    """
    One run; sightings are counted by the indicator and the event.
    """

    def count(self) -> Counter[tuple[str, str]]:
        with sqlite3.connect(f"file:{self._state / 'journal.db'}?mode=ro", uri=True) as db:
            bodies = db.execute("SELECT body FROM entries WHERE stream = 2").fetchall()
        sightings = [json.loads(body) for (body,) in bodies]
        return Counter(
            (s["sighting_of_ref"], slow_matcher.key(s["x_threatbus_sighting_context"]))
            for s in sightings
        )

    def sighted(self, wanted: int) -> Counter[tuple[str, str]]:
        deadline = time.monotonic() + LIMIT
        found, changed = self.count(), time.monotonic()
        while time.monotonic() < deadline:
            time.sleep(1)
            now = self.count()
            if now != found:
                found, changed = now, time.monotonic()
            if sum(found.values()) >= wanted and time.monotonic() - changed > QUIET:
                break
        return found

    def spread(self, documents: list[dict[str, Any]]) -> None:
        for start in range(0, len(documents), 500):
            self.publish(documents[start : start + 500])

    def feed(self, files: dict[Path, list[Event]]) -> None:
        for path, events in files.items():
            if "zeek-tsv" in path.parts:
                raw = path.read_bytes()
                text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
                import_events(self.engine, text, "zeek-tsv")
                continue
            zeek = "zeek-json" in path.parts
            more = {"_path": path.name.partition(".")[0]} if zeek else {}
            text = "".join(json.dumps({**more, **event}) + "\n" for event in events)
            import_events(self.engine, text, "zeek-json" if zeek else "suricata")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="in folders named as the formats")
    parser.add_argument("--each", type=int, default=100, help="values of each kind")
    parser.add_argument("--others", type=int, default=5000, help="values that do not hit")
    parser.add_argument("--show", type=int, default=5, help="differences to print")
    options = parser.parse_args()
    files = {path: slow_matcher.read(path) for path in options.files}
    events = [event for read in files.values() for event in read]
    drawn = draw(events, options.each, options.others)
    documents = {value: document(value) for value in drawn}
    kinds = {documents[value]["id"]: value for value in drawn}
    hitting = [v for v in drawn if not v[1].endswith(".not-there.example")]
    expected: Counter[tuple[str, str]] = Counter()
    schemas: dict[str, str] = {}
    for path, read in files.items():
        for event in read:
            log = path.name.partition(".")[0]
            key = slow_matcher.key(event)
            schemas[key] = f"{path.parent.name} {event.get('event_type', log)}"
            for value in slow_matcher.matches(event, hitting):
                expected[documents[value]["id"], key] += 1
    print(f"{len(events)} events, {len(hitting)} values in them, {options.others} others")
    bad = 0
    for mode in ("live", "retro"):
        with tempfile.TemporaryDirectory(prefix="tbvast-recall-") as folder:
            run = Recall(Path(folder))
            try:
                if mode == "live":
                    run.spread(list(documents.values()))
                    run.held(len(documents))
                    run.feed(files)
                else:
                    run.feed(files)
                    run.spread(list(documents.values()))
                found = run.sighted(sum(expected.values()))
            finally:
                run.end()
        table: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * 5)
        shown = 0
        for pair in expected.keys() | found.keys():
            kind, text = kinds.get(pair[0], ("?", pair[0]))
            want, got = expected[pair], found[pair]
            missed, more = max(want - got, 0), max(got - want, 0)
            row = table[kind, schemas.get(pair[1], "?")]
            false, double = (more, 0) if not want else (0, more)
            for place, number in enumerate((want, got, missed, false, double)):
                row[place] += number
            bad += missed + more
            if want != got and shown < options.show:
                shown += 1
                print(f"    {kind} {text}, event {pair[1]}: expected {want}, found {got}")
        print(f"{mode:8}{'':28}{'expected':>9}{'found':>9}{'missed':>9}{'false':>9}{'double':>9}")
        for (kind, schema), row in sorted(table.items()):
            print(f"  {kind:8}{schema:26}" + "".join(f"{number:9}" for number in row))
        total = [sum(column) for column in zip(*table.values(), strict=True)]
        print(f"  {'all':34}" + "".join(f"{number:9}" for number in total), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
