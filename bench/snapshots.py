"""
Ten subscribers take a snapshot at once: how fast, and how much memory the plugin needs.

    python bench/snapshots.py [--indicators 1000000] [--subscribers 10]

Prints the plugin's resident memory when idle, with the indicators in its journal, and
at its peak while the snapshots are sent, and the rate in indicators per second in all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import zmq

from tbvast.demo.services import free_ports, twistd

BATCH = 5000


def document(number: int) -> bytes:
    """
    An indicator of about 420 bytes.
    """
    return json.dumps(
        {
            "type": "indicator",
            "spec_version": "2.1",
            "id": f"indicator--{uuid.uuid5(uuid.NAMESPACE_OID, str(number))}",
            "created": "2024-01-01T00:00:00.000Z",
            "modified": "2024-01-01T00:00:00.000Z",
            "name": "x" * 90,
            "pattern": f"[ipv4-addr:value = '10.{number >> 16 & 255}.{number >> 8 & 255}."
            f"{number & 255}']",
            "pattern_type": "stix",
            "valid_from": "2024-01-01T00:00:00Z",
        }
    ).encode()


def memory(pid: int, what: str) -> float:
    """
    @param what: C{VmRSS}, or C{VmHWM} for the peak.
    @return: MiB.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise ValueError(what)


class Subscriber(threading.Thread):
    """
    Takes one snapshot.
    """

    def __init__(self, context: zmq.Context[Any], manage: int, fed: bool) -> None:
        super().__init__(daemon=True)
        self._context = context
        self._manage = manage
        self._fed = fed
        self.count = 0
        self.enough = 0

    def run(self) -> None:
        request: dict[str, Any] = {
            "action": "subscribe",
            "topic": "stix2/indicator",
            "snapshot": 30,
        }
        if self._fed:
            request["protocol"] = "tbvast/1"
        with self._context.socket(zmq.REQ) as manage, self._context.socket(zmq.SUB) as sub:
            manage.connect(f"tcp://127.0.0.1:{self._manage}")
            manage.send_json(request)
            reply: Any = manage.recv_json()
            topic = reply["topic"].encode()
            sub.rcvhwm = 1000
            sub.subscribe(topic)
            sub.connect(f"tcp://127.0.0.1:{reply['pub_port']}")
            while self.count < self.enough:
                frame = sub.recv()[len(topic) :]
                if frame.startswith(b"snapshot"):
                    items = msgspec.json.decode(frame.partition(b" ")[2])["items"]
                    self.count += len(items)
                elif frame.startswith(b"indicator"):
                    self.count += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--indicators", type=int, default=1_000_000)
    parser.add_argument("--subscribers", type=int, default=10)
    options = parser.parse_args()
    ports = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        names = [f"--{n}={p}" for n, p in zip(("manage", "pub", "sub"), ports, strict=True)]
        plugin = subprocess.Popen(
            twistd("tbvast-plugin", f"--state-dir={folder}", "--loglevel=warn", *names)
        )
        try:
            measure(plugin.pid, ports[0], options.indicators, options.subscribers)
        finally:
            plugin.terminate()
            plugin.wait()


def measure(pid: int, port: int, indicators: int, subscribers: int) -> None:
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, ZeroMQ {zmq.zmq_version()}")
    context = zmq.Context()
    with context.socket(zmq.REQ) as manage:
        manage.connect(f"tcp://127.0.0.1:{port}")
        manage.send_json({"action": "status"})
        manage.recv()
        idle = memory(pid, "VmRSS")
        began = time.monotonic()
        for start in range(0, indicators, BATCH):
            documents = b",".join(map(document, range(start, min(start + BATCH, indicators))))
            manage.send(b'{"action":"publish","documents":[' + documents + b"]}")
            manage.recv()
        taken = time.monotonic() - began
    holding = memory(pid, "VmRSS")
    print(f"idle {idle:.0f} MiB; holding {indicators:,} indicators {holding:.0f} MiB")
    print(f"published and durable: {indicators / taken:,.0f} /s")
    for fed in (True, False):
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        group = [Subscriber(context, port, fed) for _ in range(subscribers)]
        began = time.monotonic()
        for each in group:
            each.enough = indicators
            each.start()
        for each in group:
            each.join()
        taken = time.monotonic() - began
        peak = memory(pid, "VmHWM")
        print(
            f"{'tbvast/1' if fed else 'stix2':8} {subscribers} snapshots: "
            f"{subscribers * indicators / taken:,.0f} /s in all, peak {peak:.0f} MiB, "
            f"{peak - idle:.0f} above idle"
        )
    context.term()


if __name__ == "__main__":
    main()
