"""
Makes the files beside it, with tbvast 0.1.0 installed: C{python make.py}.
"""

from __future__ import annotations

import gzip
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import zmq

from tbvast.bridge.store import BridgeStore
from tbvast.intel.indicators import decode_indicator
from tbvast.intel.sightings import decode_sighting
from tbvast.wire.manage import Position

HERE = Path(__file__).parent
TIME = "2024-05-17T12:00:00.000Z"
LATER = "2099-05-18T12:00:00Z"
OVER = "2024-05-18T12:00:00Z"
"""
When some indicators end: a journal that has not run since finds them due.
"""


def indicator(name: str, pattern: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid5(uuid.NAMESPACE_DNS, name)}",
        "created": TIME,
        "modified": TIME,
        "name": name,
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": TIME,
        **more,
    }


def ip(name: str, last: int, **more: Any) -> dict[str, Any]:
    return indicator(name, f"[ipv4-addr:value = '192.0.2.{last}']", **more)


def sighting(name: str, of: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{uuid.uuid5(uuid.NAMESPACE_DNS, name)}",
        "created": TIME,
        "modified": TIME,
        "last_seen": TIME,
        "count": 1,
        "sighting_of_ref": of["id"],
        "x_threatbus_sighting_context": {"src_ip": "192.0.2.1"},
    }


def text(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def bad() -> dict[str, bytes]:
    """
    What 0.1.0 accepts and cannot handle.
    """
    digits = text(ip("digits", 101, x_size=1)).replace(b'"x_size": 1', b'"x_size": ' + b"1" * 5000)
    digits = digits.replace(b'"spec_version": "2.1", ', b"")
    ending = text(ip("ending digits", 102, x_size=1, valid_until=LATER))
    return {
        "digits": digits,
        "ending digits": ending.replace(b'"x_size": 1', b'"x_size": ' + b"1" * 5000),
        "range": text(ip("range", 103, x_size=1)).replace(b'"x_size": 1', b'"x_size": 1e400'),
        "time": text(ip("time", 104, created="0001-01-01T00:00:00+14:00")),
        "long": text(ip("long", 105, x_note="x" * (1 << 20))),
    }


def main() -> None:
    """
    Write the files.
    """
    kinds = [
        indicator("domain", "[domain-name:value = 'bad.example']"),
        indicator("url", "[url:value = 'http://bad.example/a']"),
        indicator("hash", "[file:hashes.MD5 = '70041821acf87389e40ddcb092004184']"),
        ip("sure", 1),
        ip("lasting", 2, valid_until="2099-01-01T00:00:00Z"),
        ip("late", 3, created="2024-05-17T14:00:00+02:00"),
    ]
    ending = [ip(f"ending {number}", 10 + number, valid_until=LATER) for number in range(3)]
    changed = ip("changed", 20)
    removed = ip("removed", 21)
    damaged = ip("damaged", 22)
    sightings = [sighting(f"sighting {number}", kinds[3]) for number in range(2)]
    first = [*kinds, *ending, changed, removed, damaged, *sightings]
    second = [
        {**changed, "modified": "2024-05-18T12:00:00.000Z", "name": "changed again"},
        {**removed, "modified": "2024-05-18T12:00:00.000Z", "x_threatbus_update": "REMOVE"},
    ]
    wrong = bad()
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.db"
        topics = fill(
            Path(folder), [[text(each) for each in first], [*map(text, second), *wrong.values()]]
        )
        with sqlite3.connect(journal) as database:
            (body,) = database.execute(
                "SELECT body FROM entries WHERE id = ?", (damaged["id"],)
            ).fetchone()
            body = body.replace(b'"created": ', b'"created\x07: ')
            database.execute("UPDATE entries SET body = ? WHERE id = ?", (body, damaged["id"]))
            for number, body in database.execute(
                "SELECT number, body FROM entries WHERE instr(body, CAST(? AS BLOB))", (LATER,)
            ).fetchall():
                body = body.replace(LATER.encode(), OVER.encode())
                database.execute(
                    "UPDATE entries SET body = ?, valid_until = ? WHERE number = ?",
                    (body, 1716033600_000_000, number),
                )
        database.close()
        pack(journal)
        store = Path(folder) / "bridge.db"
        make_store(store, [*kinds, changed], sightings)
        pack(store)
    contents = {
        "in force": [each["id"] for each in [*kinds, changed]],
        "ending": [each["id"] for each in ending],
        "removed": [removed["id"]],
        "sightings": [each["id"] for each in sightings],
        "bad": {
            "damaged": damaged["id"],
            **{name: uuid_of(raw) for name, raw in wrong.items()},
        },
        "topics": topics,
        "entries": len(first) + len(second) + len(wrong),
    }
    (HERE / "contents.json").write_text(json.dumps(contents, indent=2) + "\n")


def uuid_of(raw: bytes) -> str:
    return raw.partition(b'"id": "')[2].partition(b'"')[0].decode()


def fill(folder: Path, requests: list[list[bytes]]) -> list[str]:
    """
    Run the plugin, subscribe in the old dialects, and publish.

    @return: The subscriptions' own topics.
    """
    ports = []
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    options = [
        f"--{name}={port}" for name, port in zip(("manage", "pub", "sub"), ports, strict=True)
    ]
    twistd = str(Path(sys.executable).with_name("twistd"))
    plugin = subprocess.Popen(
        [twistd, "--nodaemon", "--pidfile=", "tbvast-plugin", f"--state-dir={folder}", *options]
    )
    try:
        with zmq.Context() as context, context.socket(zmq.REQ) as manage:
            manage.connect(f"tcp://127.0.0.1:{ports[0]}")

            def ask(request: bytes) -> Any:
                manage.send(request)
                return json.loads(manage.recv())

            topics = [
                ask(text({"action": "subscribe", "topic": topic, "snapshot": 0}))["topic"]
                for topic in ("stix2/indicator", "threatbus/intel")
            ]
            for documents in requests:
                request = b'{"action":"publish","documents":[' + b",".join(documents) + b"]}"
                reply = ask(request)
                if set(reply["outcomes"]) != {"accepted"}:
                    raise SystemExit(str(reply))
            time.sleep(2)  # the subscriptions are remembered after a second
    finally:
        plugin.terminate()
        plugin.wait()
    return topics


def make_store(
    path: Path, indicators: list[dict[str, Any]], sightings: list[dict[str, Any]]
) -> None:
    """
    A bridge's store, with sightings that have not been sent.
    """
    store = BridgeStore(path)
    store.derive(False)
    found = [decode_indicator(text(each)) for each in indicators]
    store.apply(found, time.time(), False, Position("bus", 12))
    store.remember([decode_sighting(text(each)) for each in sightings], time.time())
    store.close()


def pack(path: Path) -> None:
    """
    Keep a file, compressed; the same contents are the same bytes.
    """
    (HERE / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
