"""
Plain ZeroMQ clients, and a plugin as a child process, for callers that may block.

The clients know a host and the port of its manage endpoint, and nothing of tbvast.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sqlite3
import struct
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from devtools.services import end_process, free_ports, own_environment, twistd
from tbvast.service.child_process import launch_command
from tbvast.values import HostPort
from tests.functional.components import wait_until

LIMIT = 60.0
"""
Seconds that an answer, or a message, may take.
"""


PROBE = "only to see whether it arrives"
"""
The text in documents that only find out whether somebody listens; a client passes them over,
except in L{Client.probed}.
"""


def an_indicator(pattern: str = "[ipv4-addr:value = '192.0.2.1']", **more: Any) -> dict[str, Any]:
    """
    A document that nobody else has.
    """
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid4()}",
        "created": "2024-01-01T00:00:00Z",
        "modified": "2024-01-01T00:00:00Z",
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": "2024-01-01T00:00:00Z",
        **more,
    }


def a_sighting(**more: Any) -> dict[str, Any]:
    """
    A document that nobody else has.
    """
    return {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{uuid.uuid4()}",
        "created": "2024-01-01T00:00:00Z",
        "modified": "2024-01-01T00:00:00Z",
        "sighting_of_ref": f"indicator--{uuid.uuid4()}",
        "last_seen": "2024-01-01T00:00:00Z",
        **more,
    }


def frame(document: Mapping[str, Any]) -> bytes:
    """
    A frame of the sub endpoint.
    """
    return f"stix2/{document['type']} {json.dumps(document)}".encode()


class Sockets:
    """
    Sockets that are closed together.
    """

    def __init__(self) -> None:
        self.context = zmq.Context()

    def socket(self, kind: int, port: int, host: str, **options: int) -> zmq.Socket[bytes]:
        """
        @param options: Socket options that have to be set before it is connected.
        """
        made: zmq.Socket[bytes] = self.context.socket(kind)
        for name, value in options.items():
            made.set(getattr(zmq, name), value)
        made.connect(f"tcp://{host}:{port}")
        return made

    def close(self) -> None:
        self.context.destroy(linger=0)


class Client(Sockets):
    """
    A subscriber.

    @ivar topic: The topic that is its own.
    @ivar pub: The port of the pub endpoint, as it was told.
    @ivar sub: The port of the sub endpoint, as it was told.
    """

    def __init__(self, host: HostPort) -> None:
        """
        @param host: The manage endpoint.
        """
        super().__init__()
        self.host = host.host
        self.topic = ""
        self.pub = self.sub = 0
        self._manage = self.socket(zmq.REQ, host.port, host.host)

    def ask(self, *frames: bytes) -> bytes:
        """
        @return: The reply, which is one frame.
        """
        self._manage.send_multipart(frames)
        if not self._manage.poll(round(LIMIT * 1000)):
            raise AssertionError(f"no answer to {frames[0][:100]!r}")
        (reply,) = self._manage.recv_multipart()
        return reply

    def request(self, action: str, **fields: Any) -> dict[str, Any]:
        """
        @return: The reply, which is a JSON object.
        """
        reply = json.loads(self.ask(json.dumps({"action": action, **fields}).encode()))
        if not isinstance(reply, dict):
            raise AssertionError(f"{reply!r} is not an object")
        return reply

    def subscribe(self, topic: Any, snapshot: int = 0, **more: Any) -> dict[str, Any]:
        """
        Subscribe, and do not connect to the pub endpoint yet.

        @return: The reply.
        """
        reply = self.request("subscribe", topic=topic, snapshot=snapshot, **more)
        self.topic = reply["topic"]
        self.pub, self.sub = reply["pub_port"], reply["sub_port"]
        return reply

    def unsubscribe(self) -> bytes:
        """
        @return: The reply.
        """
        return self.ask(json.dumps({"action": "unsubscribe", "topic": self.topic}).encode())

    def heartbeat(self) -> str:
        """
        @return: The status in the reply.
        """
        status: str = self.request("heartbeat", topic=self.topic)["status"]
        return status

    def connect(self, prefix: str | None = None, **options: int) -> None:
        """
        Connect to the pub endpoint.

        @param prefix: What is received; its own topic if none is given.
        """
        self._sub = self.socket(zmq.SUB, self.pub, self.host, **options)
        self._sub.subscribe(self.topic if prefix is None else prefix)

    def join(self, topic: Any, snapshot: int = 0) -> None:
        """
        Subscribe and connect.
        """
        self.subscribe(topic, snapshot)
        self.connect()

    def leave(self) -> None:
        """
        Disconnect from the pub endpoint without a word.
        """
        self._sub.close()

    def hear(self, prefix: str) -> None:
        """
        Receive what begins with a prefix, too.
        """
        self._sub.subscribe(prefix)

    def waiting(self, limit: float = 0.5) -> bool:
        """
        Whether there is something to receive.

        @param limit: Seconds to wait for it.
        """
        return bool(self._sub.poll(round(limit * 1000)))

    def receive(self, limit: float = LIMIT) -> tuple[str, str]:
        """
        @param limit: Seconds.
        @return: Topic and payload of the next message, which is one frame.
        """
        while self._sub.poll(round(limit * 1000)):
            (message,) = self._sub.recv_multipart()
            if PROBE.encode() not in message:
                break
        else:
            raise AssertionError(f"nothing received within {limit} s")
        topic, _, payload = message.decode().partition(" ")
        return topic, payload

    def probed(self, limit: float) -> bool:
        """
        @param limit: Seconds.
        @return: Whether a probe came in time.
        """
        return self.waiting(limit) and PROBE.encode() in self._sub.recv()

    def receive_until(self, id: str) -> list[tuple[str, Any]]:
        """
        @param id: Of the last document to wait for.
        @return: Type and document of each message up to that one; what is asked of
            all subscribers is left out.
        """
        found: list[tuple[str, Any]] = []
        while not found or found[-1][1].get("id") != id:
            topic, payload = self.receive()
            kind = topic.removeprefix(self.topic)
            if kind != "snapshotrequest":
                found.append((kind, json.loads(payload)))
        return found

    def ids_until(self, id: str) -> list[str]:
        """
        @return: The ids of the documents up to one.
        """
        return [document["id"] for _, document in self.receive_until(id)]


class Publisher(Sockets):
    """
    Sends to a sub endpoint that listens.
    """

    def __init__(self, host: str, port: int, *topics: str) -> None:
        """
        @param topics: What the endpoint has to listen to before this returns.
        """
        super().__init__()
        self._pub = self.socket(zmq.XPUB, port, host, SNDHWM=0)
        heard: list[str] = []
        while not all(topic.startswith(tuple(heard)) for topic in topics or ("stix2/indicator",)):
            if not self._pub.poll(round(LIMIT * 1000)):
                raise AssertionError("the sub endpoint does not listen")
            heard.append(self._pub.recv()[1:].decode())

    def send(self, *frames: bytes) -> None:
        """
        Send one message.
        """
        self._pub.send_multipart(frames)

    def publish(self, *documents: Mapping[str, Any]) -> None:
        """
        Send STIX objects, each as a message.
        """
        for document in documents:
            self.send(frame(document))

    def close(self) -> None:
        """
        Close it when what was sent has left.
        """
        self.context.destroy(linger=round(LIMIT * 1000))


class NoPeer(AssertionError):
    """
    The other side has ended the connection before it was ready.
    """


class Peer:
    """
    Speaks ZMTP 3.0 itself: sends what ZeroMQ would not.
    """

    def __init__(self, host: str, port: int, kind: bytes, identity: bytes = b"") -> None:
        """
        @param kind: The type of socket that it says it is, e.g. C{b"SUB"}.
        @param identity: The identity that it claims; C{b""} for none.
        @raise NoPeer: If the other side ends the connection.
        """
        self._socket = socket.create_connection((host, port), LIMIT)
        ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        if identity:
            ready += b"\x08Identity" + len(identity).to_bytes(4, "big") + identity
        received = b""
        try:
            self._socket.sendall(
                b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
            )
            self._socket.sendall(bytes([_COMMAND, len(ready)]) + ready)
            # Whoever sends before the other side is ready, too, is cut off.
            while b"READY" not in received:
                received += (more := self._socket.recv(4096))
                if not more:
                    raise ConnectionError("closed")
        except ConnectionError as e:
            self._socket.close()
            raise NoPeer(f"no peer: {e}, after {received!r}") from e

    def send(self, *frames: bytes, more: bool = False) -> bool:
        """
        @param more: Whether more frames of the message follow.
        @return: Whether the connection is still there.
        """
        parts = []
        for number, each in enumerate(frames, 1):
            flags = _LONG | (_MORE if more or number < len(frames) else 0)
            parts += [bytes([flags]), len(each).to_bytes(8, "big"), each]
        try:
            self._socket.sendall(b"".join(parts))
        except OSError:
            return False
        return True

    def begin(self, length: int, data: bytes) -> None:
        """
        Send the beginning of a frame, unless the other side ends the connection.

        @param length: The length of the frame.
        """
        with contextlib.suppress(OSError):
            self._socket.sendall(bytes([_LONG]) + length.to_bytes(8, "big") + data)

    def send_bytes(self, data: bytes) -> bool:
        """
        Send bytes as they are.

        @return: Whether the other side has taken them within a second. If it has closed a
            connection whose buffer was full, the kernel takes a minute to say so.
        """
        self._socket.settimeout(1.0)
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        finally:
            self._socket.settimeout(LIMIT)
        return True

    def was_cut_off(self) -> bool:
        """
        Wait until the other side has ended the connection.
        """
        try:
            while self._socket.recv(4096):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def die(self) -> None:
        """
        Answer nothing any more, as if this machine were gone.
        """
        ignore_all(self._socket)

    def close(self) -> None:
        self._socket.close()


_MORE = 1
_LONG = 2
_COMMAND = 4


def ignore_all(connection: socket.socket) -> None:
    """
    Have the kernel drop whatever arrives for a connection, so that the other end gets no
    answer any more, as if this machine were gone.
    """
    nothing = struct.pack("HBBI", 0x06, 0, 0, 0)  # a filter that returns no byte
    kept = ctypes.create_string_buffer(nothing)
    program = struct.pack("HL", 1, ctypes.addressof(kept))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


_SO_ATTACH_FILTER = 26


class BlockingProcess:
    """
    A service as a child process, which does not outlive this one.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, descriptors: tuple[int, int] | None = None
    ) -> None:
        """
        @param folder: Where its log is written.
        @param descriptors: The soft and the hard limit of its descriptors; those of this process
            by default.
        """
        self._log = folder / "log"
        if descriptors is not None:
            limit = 'ulimit -Sn $0 && ulimit -Hn $1 && shift && exec "$@"'
            command = ["/bin/sh", "-c", limit, *map(str, descriptors), *command]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                launch_command(command[0], command[1:]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=own_environment(),
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        """
        All that it said.
        """
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """
        Whether it runs.
        """
        return self._process.poll() is None

    def saw(self, text: str) -> None:
        """
        Wait for what it says.

        @raise AssertionError: If it ends, or does not say it in time.
        """

        def found() -> bool:
            if text in self.log:
                return True
            if not self.alive:
                raise AssertionError(f"it ended: {self.log[-2000:]}")
            return False

        wait_until(found, LIMIT)

    def signal(self, number: int) -> None:
        """
        Send it a signal.
        """
        self._process.send_signal(number)

    def wait(self) -> int:
        """
        Wait until it has ended.

        @return: The exit status.
        """
        return self._process.wait(LIMIT)

    def stop(self) -> int:
        """
        End it: with SIGTERM, and with SIGKILL if that is not enough.

        @return: The exit status.
        """
        return end_process(self._process)

    def rss(self) -> int:
        """
        Its resident memory in bytes.
        """
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """
        How many files it has open.
        """
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def seconds(self) -> float:
        """
        The time that it has had the processors for.
        """
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def threads(self) -> int:
        """
        How many threads it has.
        """
        return len(os.listdir(f"/proc/{self.pid}/task"))


class PluginProcess(BlockingProcess):
    """
    C{twistd tbvast-plugin} on free ports of the loopback address, which answers.

    @ivar manage: The manage endpoint.
    """

    def __init__(
        self, folder: Path, descriptors: tuple[int, int] | None = None, /, **settings: Any
    ) -> None:
        """
        @param folder: Where it keeps everything.
        @param descriptors: As for L{BlockingProcess}.
        @param settings: More of its configuration.
        """
        ports = dict(zip(("manage", "pub", "sub"), free_ports(3), strict=True))
        self._folder = folder
        self._settings = {**ports, "state_dir": str(folder / "state"), **settings}
        ports = {name: self._settings[name] for name in ports}
        config = folder / "tap.conf"
        config.write_text(json.dumps({"plugin": self._settings}))  # YAML, too
        self.manage = HostPort("127.0.0.1", ports["manage"])
        super().__init__(twistd("tbvast-plugin", f"--config={config}"), folder, descriptors)
        self.status()

    def again(self) -> PluginProcess:
        """
        @return: One with the same state, on the same ports, after this one has ended.
        """
        return PluginProcess(self._folder, **self._settings)

    def kept(self, stream: int = 1) -> list[str]:
        """
        @param stream: 1 for indicators, 2 for sightings.
        @return: The ids in its journal, by number.
        """
        return self._column("SELECT id FROM entries WHERE stream = ? ORDER BY number", stream)

    def saved(self, topic: str) -> bool:
        """
        Whether its journal has a subscription.
        """
        return bool(self._column("SELECT 1 FROM subscriptions WHERE topic = ?", topic))

    def _column(self, query: str, *arguments: object) -> list[Any]:
        path = self._folder / "state" / "journal.db"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [value for (value,) in connection.execute(query, arguments)]

    def status(self) -> dict[str, Any]:
        """
        What it says of itself.
        """
        return self._ask("status")

    def publish(self, documents: list[dict[str, Any]]) -> None:
        """
        Publish documents by request.
        """
        self._ask("publish", documents=documents)

    def _ask(self, action: str, **properties: Any) -> dict[str, Any]:
        client = Client(self.manage)
        try:
            return client.request(action, **properties)
        finally:
            client.close()

    def bridge_report(self) -> dict[str, Any]:
        """
        @return: A bridge's report on its engine; empty if there is none.
        """
        for each in self.subscriptions():
            if each["name"] == "tbvast-bridge" and each.get("report"):
                found: dict[str, Any] = each["report"]["engine"]
                return found
        return {}

    def sightings(self) -> int:
        """
        @return: The number of sightings in its journal, which has each once.
        """
        return int(self.status()["journal"]["sightings"])

    def subscriptions(self) -> list[dict[str, Any]]:
        """
        What it says of its subscriptions.
        """
        found: list[dict[str, Any]] = self.status()["subscriptions"]
        return found


class Pace:
    """
    A steady rate.
    """

    def __init__(self, rate: float) -> None:
        """
        @param rate: Turns a second.
        """
        self._interval = 1 / rate
        self._began = self._next = time.monotonic()

    @property
    def elapsed(self) -> float:
        """
        Seconds since it was made.
        """
        return time.monotonic() - self._began

    def turn(self) -> None:
        """
        Wait for the next turn.
        """
        self._next += self._interval
        time.sleep(max(0.0, self._next - time.monotonic()))
