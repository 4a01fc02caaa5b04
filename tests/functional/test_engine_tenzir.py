"""
The engine on a real Tenzir node.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from devtools.services import free_ports
from tbvast.engines.tenzir import engine as tenzir_engine
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.engine import TenzirEngine
from tbvast.engines.tenzir.node_calls import NodeCalls, Page
from tbvast.errors import (
    EngineCallFailed,
    EngineInterrupted,
    EngineTablesChanged,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
)
from tbvast.interfaces import IEngine
from tbvast.stix.observables import Kind, Observable, normalise
from tbvast.telemetry.known_fields import (
    POSITIONS,
    Source,
    SourceMapping,
    fields,
    with_mappings,
)
from tbvast.values import Entry, Match
from tests.doubles_engine import (
    ABSENT,
    ADDRESS,
    HOST,
    EngineContract,
    TablesContract,
    event,
    unheeded,
)
from tests.functional.components import (
    LIMIT,
    RealNode,
    children,
    listening,
    require_tenzir,
    wait_until,
)

BRIDGE = "0123456789abcdef"
TABLES = pipelines.main_tables(BRIDGE)


class TenzirTestCase(SynchronousTestCase):
    """
    A test with a node, and an engine that is prepared.
    """

    def setUp(self) -> None:
        self.binary = require_tenzir(self)
        self.node = RealNode()
        self.addCleanup(self.node.stop)
        self.addCleanup(self.assert_nothing_left)
        self.engine = self.make_tenzir(self.node.endpoint)
        self.engine.prepare()

    def make_tenzir(self, endpoint: str, bridge: str = BRIDGE, **options: Any) -> TenzirEngine:
        path = Path(self.mktemp())
        return TenzirEngine(endpoint, self.binary, path, bridge, tls=self.node.tls, **options)

    def assert_nothing_left(self) -> None:
        """
        The node is the only child of this process.
        """
        self.assertEqual([pid for pid in children(os.getpid()) if pid != self.node_pid()], [])

    def node_pid(self) -> int:
        try:
            return self.node.pid
        except AssertionError:
            return 0

    def arrive(self, *events: dict[str, Any]) -> None:
        """
        Import events, in one go: each takes a command of its own otherwise.
        """
        self.node.feed("\n".join(map(json.dumps, events)), "suricata")


class TableTests(TenzirTestCase):
    """
    The tables of several bridges in one node.
    """

    def held(self) -> set[str]:
        """
        The names of the tables in the node.
        """
        listed = self.node.run(pipelines.list_tables()).splitlines()
        return {json.loads(line)["name"] for line in listed}

    def test_of_others(self) -> None:
        """
        A bridge leaves the tables of others alone, those of 0.1.0 included.
        """
        for table in pipelines.OLD_TABLES:
            self.node.run(pipelines.create_table(table))
        self.engine.add([[ADDRESS]])
        other = self.make_tenzir(self.node.endpoint, bridge="feedface00000000")
        other.prepare()
        self.assertEqual(other.contents(), [])
        other.add([[HOST]])
        self.assertEqual(self.engine.contents(), [ADDRESS])
        others = {*pipelines.OLD_TABLES, *TABLES, *pipelines.retro_tables(BRIDGE)}
        self.assertLess(others, self.held())

    def test_entries_of_others(self) -> None:
        """
        An entry that the bridge would not write under its key is noticed when the entries are read
        back. Preparation removes it, though it can be erased in no other way.
        """
        value = '{v: "evil.example", k: "domain", ids: ["indicator--2"]}'
        for key in ('"good.example"', "null"):
            self.engine.add([[HOST]])
            self.node.run(
                f'from {{k: {key}, v: {value}}}\ncontext_update "{TABLES.text}", key=k, value=v'
            )
            e = self.assertRaises(EngineTablesChanged, self.engine.contents)
            self.assertEqual(e.reason, f"{TABLES.text} has entries of others")
            self.engine.prepare()
            self.assertEqual(self.engine.contents(), [])

    def test_search_table_removed(self) -> None:
        """
        A search whose table was removed fails, and finds everything after another preparation.
        """
        self.arrive(event(1))
        self.node.run(pipelines.drop_table(pipelines.retro_tables(BRIDGE).ip))
        search = self.engine.find([ADDRESS], 0, LIMIT)
        self.assertRaises(EngineTablesChanged, list, search)
        self.engine.prepare()
        (found,) = self.engine.find([ADDRESS], 0, LIMIT)
        self.assertEqual(len(found), 1)

    def test_search_table_changed(self) -> None:
        """
        A search whose tables change before its end fails: its matches may not be all.
        """
        fetch = NodeCalls.fetch
        table = pipelines.retro_tables(BRIDGE).ip

        def changing(calls: NodeCalls, pipeline: str) -> Page:
            page = fetch(calls, pipeline)
            self.node.run(f'from {{k: {ADDRESS.observable.value}}}\ncontext_erase "{table}", key=k')
            return page

        self.arrive(event(1))
        self.patch(NodeCalls, "fetch", changing)
        search = self.engine.find([ADDRESS], 0, LIMIT)
        e = self.assertRaises(EngineTablesChanged, list, search)
        self.assertEqual(e.reason, f"{table} has 0 entries instead of 1")

    def test_of_old_bridge(self) -> None:
        """
        In its own node, a bridge removes its tables of 0.1.0, and no others.
        """
        for table in (*pipelines.OLD_TABLES, "mine"):
            self.node.run(pipelines.create_table(table))
        self.make_tenzir(self.node.endpoint, own=True).prepare()
        self.assertEqual(self.held(), {"mine", *TABLES, *pipelines.retro_tables(BRIDGE)})


class TenzirEngineTests(TenzirTestCase, EngineContract, TablesContract):
    """
    L{TenzirEngine} is an engine.
    """

    limit = 180.0

    def make_engine(self) -> IEngine:
        self.patch(pipelines, "REPORT_SECONDS", 0.5)
        return self.engine

    def covered(self, engine: IEngine, watch: Any) -> None:
        """
        Wait in one step: an event in between would take the time of a command.
        """

        def arrive() -> None:
            wait_until(lambda: any(each.covered for each in self.progress), self.limit)
            self.arrive(event(59))

        waiting = threading.Thread(target=arrive)
        waiting.start()
        next(watch)
        waiting.join()

    def remove_table(self) -> None:
        self.node.run(pipelines.drop_table(TABLES.ip))

    def erase(self, observable: Observable) -> None:
        self.node.run(f'from {{k: {observable.value}}}\ncontext_erase "{TABLES.ip}", key=k')


def entry(kind: Kind, value: str, *ids: str) -> Entry:
    return Entry(Observable(kind, value), ids or ("indicator--1",))


DATA = Path(__file__).parent.parent / "data"
LOGGED = {Kind.FILE_NAME, Kind.USER_AGENT, Kind.CERTIFICATE}

MD5 = "5d" * 16
JA4 = "t13d1516h2_8daaf6152771_e5627efa2ab1"

EVERYTHING: dict[str, list[tuple[dict[str, Any], Entry, str]]] = {
    "suricata": [
        (
            {"event_type": "flow", "src_ip": "2001:DB8::7", "dest_ip": "10.0.0.1"},
            entry(Kind.IP, "2001:db8::7"),
            "src_ip",
        ),
        (
            {"event_type": "flow", "src_ip": "10.0.0.2", "dest_ip": "198.51.100.9"},
            entry(Kind.NETWORK, "198.51.100.0/24", "indicator--1", "indicator--2"),
            "dest_ip",
        ),
        (
            {"event_type": "dns", "dns": {"type": "query", "rrname": "Asked.Example."}},
            entry(Kind.DOMAIN, "asked.example"),
            "dns.rrname",
        ),
        (
            {
                "event_type": "dns",
                "dns": {"type": "answer", "grouped": {"A": [f"10.0.1.{n}" for n in range(24)]}},
            },
            entry(Kind.IP, "10.0.1.23"),
            "dns.grouped.A[23]",
        ),
        (
            {
                "event_type": "dns",
                "dns": {"answers": [{"rdata": "a.b"}, {"rdata": "Answer.Example"}]},
            },
            entry(Kind.DOMAIN, "answer.example"),
            "dns.answers[1].rdata",
        ),
        (
            {"event_type": "http", "http": {"hostname": "192.0.2.77", "url": "/"}},
            entry(Kind.IP, "192.0.2.77"),
            "http.hostname",
        ),
        (
            {
                "event_type": "http",
                "http": {"hostname": "Port.example", "http_port": 8080, "url": "/p?Q"},
            },
            entry(Kind.URL, "port.example:8080/p?Q"),
            "http.url",
        ),
        (
            {
                "event_type": "http",
                "http": {"hostname": "proxy.example", "url": "http://Via.Example/A/b?c=d/e"},
            },
            entry(Kind.URL, "via.example/A/b?c=d/e"),
            "http.url",
        ),
        (
            {"event_type": "tls", "tls": {"sni": "Sni.Example"}},
            entry(Kind.DOMAIN, "sni.example"),
            "tls.sni",
        ),
        (
            {"event_type": "fileinfo", "fileinfo": {"sha256": "AB" * 32}},
            entry(Kind.SHA256, "ab" * 32),
            "fileinfo.sha256",
        ),
        (
            {"event_type": "smtp", "smtp": {"mail_from": "<Bad@Mail.Example>"}},
            entry(Kind.EMAIL, "bad@mail.example"),
            "smtp.mail_from",
        ),
        (
            {"event_type": "smtp", "email": {"to": ["Good <g@x.y>", "Worse <Worse@Mail.Example>"]}},
            entry(Kind.EMAIL, "worse@mail.example"),
            "email.to[1]",
        ),
        (
            {"event_type": "alert", "tls": {"sni": "alert.example"}},
            entry(Kind.DOMAIN, "alert.example"),
            "tls.sni",
        ),
        (
            {
                "event_type": "flow",
                "ether": {"src_macs": ["00:00:5e:00:53:01", "00:00:5E:00:53:02"]},
            },
            entry(Kind.MAC, "00:00:5e:00:53:02"),
            "ether.src_macs[1]",
        ),
        (
            {"event_type": "http", "ether": {"dest_mac": "00:00:5e:00:53:03"}},
            entry(Kind.MAC, "00:00:5e:00:53:03"),
            "ether.dest_mac",
        ),
        (
            {"event_type": "dhcp", "dhcp": {"client_mac": "00:00:5e:00:53:04"}},
            entry(Kind.MAC, "00:00:5e:00:53:04"),
            "dhcp.client_mac",
        ),
        (
            {"event_type": "http", "http": {"http_user_agent": 'Evil/1 ("x"; ü)'}},
            entry(Kind.USER_AGENT, 'Evil/1 ("x"; ü)'),
            "http.http_user_agent",
        ),
        (
            {"event_type": "tls", "tls": {"ja3": {"hash": MD5, "string": "771,1"}}},
            entry(Kind.JA3, MD5),
            "tls.ja3.hash",
        ),
        (
            {"event_type": "tls", "tls": {"ja3s": {"hash": MD5, "string": "771,1"}}},
            entry(Kind.JA3S, MD5),
            "tls.ja3s.hash",
        ),
        (
            {"event_type": "quic", "quic": {"sni": "x.y", "ja4": JA4}},
            entry(Kind.JA4, JA4),
            "quic.ja4",
        ),
        (
            {"event_type": "tls", "tls": {"fingerprint": ":".join(["AB"] * 20)}},
            entry(Kind.CERTIFICATE, "ab" * 20),
            "tls.fingerprint",
        ),
        (
            {"event_type": "fileinfo", "fileinfo": {"filename": "/a/C:\\b\\Evil ü.Example"}},
            entry(Kind.FILE_NAME, "Evil ü.Example"),
            "fileinfo.filename",
        ),
        (
            {"event_type": "fileinfo", "fileinfo": {"md5": MD5}},
            entry(Kind.MD5, MD5),
            "fileinfo.md5",
        ),
        (
            {"event_type": "alert", "files": [{"filename": "/x"}, {"filename": "/sni.example"}]},
            entry(Kind.FILE_NAME, "sni.example"),
            "files[1].filename",
        ),
    ],
    "zeek-json": [
        (
            {"_path": "conn", "ts": 1.5, "id.orig_h": "10.9.9.9", "id.resp_h": "10.0.0.1"},
            entry(Kind.IP, "10.9.9.9"),
            "id.orig_h",
        ),
        (
            {"_path": "dns", "query": "ZEEK.example", "answers": ["10.1.1.1", "Cname.example"]},
            entry(Kind.DOMAIN, "cname.example"),
            "answers[1]",
        ),
        (
            {"_path": "dns", "query": "q.example", "answers": ["10.7.7.7"]},
            entry(Kind.IP, "10.7.7.7"),
            "answers[0]",
        ),
        (
            {"_path": "http", "host": "Zeek.Http", "uri": "/Z", "id.resp_p": 80},
            entry(Kind.URL, "zeek.http/Z"),
            "uri",
        ),
        (
            {"_path": "http", "host": "zeek.http", "uri": "/port", "id.resp_p": 8081},
            entry(Kind.URL, "zeek.http:8081/port"),
            "uri",
        ),
        (
            {"_path": "http", "host": "zeek.http", "uri": "/it's 1%", "id.resp_p": 81},
            entry(Kind.URL, "unescaped zeek.http:81/it's 1%"),
            "uri",
        ),
        (
            {"_path": "ssl", "server_name": "Zeek.Ssl"},
            entry(Kind.DOMAIN, "zeek.ssl"),
            "server_name",
        ),
        (
            {"_path": "files", "md5": "CD" * 16},
            entry(Kind.MD5, "cd" * 16),
            "md5",
        ),
        (
            {"_path": "smtp", "from": "Bad <Zeek@Mail.Example>"},
            entry(Kind.EMAIL, "zeek@mail.example"),
            "from",
        ),
        (
            {"_path": "conn", "id.orig_h": "10.0.0.3", "orig_l2_addr": "00:00:5E:00:53:05"},
            entry(Kind.MAC, "00:00:5e:00:53:05"),
            "orig_l2_addr",
        ),
        (
            {"_path": "dhcp", "mac": "00:00:5e:00:53:06"},
            entry(Kind.MAC, "00:00:5e:00:53:06"),
            "mac",
        ),
        (
            {"_path": "http", "host": "h.x", "uri": "/", "user_agent": "Zeek Agent"},
            entry(Kind.USER_AGENT, "Zeek Agent"),
            "user_agent",
        ),
        (
            {"_path": "http", "host": "h.x", "uri": "/", "resp_filenames": ["a", "zeek.doc"]},
            entry(Kind.FILE_NAME, "zeek.doc"),
            "resp_filenames[1]",
        ),
        (
            {"_path": "files", "filename": "C:\\zeek.exe"},
            entry(Kind.FILE_NAME, "zeek.exe"),
            "filename",
        ),
        (
            {"_path": "ssl", "ja3": "ce" * 16},
            entry(Kind.JA3, "ce" * 16),
            "ja3",
        ),
        (
            {"_path": "ssl", "cert_chain_fps": ["1f" * 32, "2F" * 32]},
            entry(Kind.CERTIFICATE, "2f" * 32),
            "cert_chain_fps[1]",
        ),
        (
            {"_path": "x509", "fingerprint": "3f" * 32},
            entry(Kind.CERTIFICATE, "3f" * 32),
            "fingerprint",
        ),
    ],
    "ndjson": [
        (
            {"id.orig_h": "10.8.8.8", "proto": "tcp"},
            entry(Kind.IP, "10.8.8.8"),
            "id.orig_h",
        ),
        (
            {"src_endpoint": {"ip": "10.6.6.6"}, "class_uid": 4001},
            entry(Kind.IP, "10.6.6.6"),
            "src_endpoint.ip",
        ),
        (
            {"class_uid": 4002, "http_request": {"url": {"url_string": "https://Ocsf.Example/u"}}},
            entry(Kind.URL, "ocsf.example/u"),
            "http_request.url.url_string",
        ),
        (
            {"class_uid": 1001, "file": {"hashes": [{"value": "x"}, {"value": "EF" * 20}]}},
            entry(Kind.SHA1, "ef" * 20),
            "file.hashes[1].value",
        ),
        (
            {"class_uid": 1001, "file": {"name": "ocsf.exe"}},
            entry(Kind.FILE_NAME, "ocsf.exe"),
            "file.name",
        ),
        (
            {"tls": {"certificate": {"fingerprints": [{"value": "AF" * 32}]}}},
            entry(Kind.CERTIFICATE, "af" * 32),
            "tls.certificate.fingerprints[0].value",
        ),
        (
            {"tls": {"ja3_hash": {"value": "AA" * 16}}},
            entry(Kind.JA3, "aa" * 16),
            "tls.ja3_hash.value",
        ),
        (
            {"ja4_fingerprint_list": [{"type_id": 1, "value": JA4.replace("2", "3")}]},
            entry(Kind.JA4, JA4.replace("2", "3")),
            "ja4_fingerprint_list[0].value",
        ),
        (
            {"http_request": {"user_agent": "Ocsf Agent"}},
            entry(Kind.USER_AGENT, "Ocsf Agent"),
            "http_request.user_agent",
        ),
        (
            {"src_endpoint": {"mac": "00-00-5E-00-53-07"}},
            entry(Kind.MAC, "00:00:5e:00:53:07"),
            "src_endpoint.mac",
        ),
    ],
}
"""
Events of each format, with what is to be found in each, and where.
"""

DECOYS = [
    entry(Kind.DOMAIN, "ab" * 16),
    entry(Kind.DOMAIN, "example"),
    entry(Kind.IP, "10.255.255.1"),
    entry(Kind.NETWORK, "172.16.0.0/12"),
    entry(Kind.URL, "zeek.http:80/port"),
]
"""
What is in none of the events.
"""


class FieldTests(TenzirTestCase):
    """
    Every kind of observable is found, in the field that holds it.
    """

    def test_everywhere(self) -> None:
        """
        The live match and a search find the same, once each.
        """
        cases = [case for format in EVERYTHING.values() for case in format]
        expected = sorted((field, e.observable) for _, e, field in cases)
        entries = [e for _, e, _ in cases]
        self.engine.add([entries + DECOYS])
        timer = threading.Timer(60, self.engine.interrupt)
        timer.start()
        self.addCleanup(timer.cancel)
        watch: Any = self.engine.watch(unheeded)
        live: list[Match] = []
        with closing(watch):
            self.assertEqual(next(watch), [])
            for format, events in EVERYTHING.items():
                lines = [{"timestamp": "2026-01-02T03:04:05Z", **e} for e, _, _ in events]
                # The engine refuses a stream in which Zeek's logs alternate.
                for log in dict.fromkeys(line.get("_path") for line in lines):
                    part = [line for line in lines if line.get("_path") == log]
                    self.node.feed("\n".join(map(json.dumps, part)), format)
            while len(live) < len(cases):
                live += next(watch)
        self.assertEqual(_hits(live), expected)
        retro = _found(self.engine, entries + DECOYS)
        self.assertEqual(_hits(retro), expected)
        self.assertEqual(
            sorted(json.dumps(match.event) for match in live),
            sorted(json.dumps(match.event) for match in retro),
        )

    def test_field_map(self) -> None:
        """
        Events of a schema of one's own are looked at where the field map says.
        """
        said = Source(
            "acme.proxy",
            fields("ip", "match.in[].addr")
            + fields("domain", "who.server")
            + fields("file-name", "got")
            + fields("mac", "if"),
        )
        engine = self.make_mapped([SourceMapping(said)])
        other = self.make_mapped([SourceMapping(Source("acme.*", ()), True)])
        entries = [
            entry(Kind.IP, "192.0.2.5"),
            entry(Kind.DOMAIN, "acme.example"),
            entry(Kind.FILE_NAME, "x.exe"),
            entry(Kind.MAC, "00:00:5e:00:53:08"),
            ADDRESS,
        ]
        line = {
            "match": {"in": [{"addr": "192.0.2.4"}, {"addr": "192.0.2.5"}]},
            "who": {"server": "Acme.Example."},
            "got": "/tmp/x.exe",
            "if": "00-00-5E-00-53-08",
            "src_ip": ADDRESS.observable.value,
        }
        self.node.run(
            'from_stdin { read_ndjson } | @name = "acme.proxy" | import', json.dumps(line)
        )
        (match,) = _found(engine, entries)
        self.assertEqual(match.schema, "acme.proxy")
        self.assertEqual(
            sorted(hit.field for hit in match.hits),
            ["got", "if", "match.in[1].addr", "src_ip", "who.server"],
        )
        self.assertEqual(_found(other, entries), [])

    def make_mapped(self, given: Sequence[SourceMapping]) -> TenzirEngine:
        engine = self.make_tenzir(self.node.endpoint, sources=with_mappings(given))
        engine.prepare()
        return engine

    def test_subdomains(self) -> None:
        """
        Only if told so, a domain is found in the names below it, live and in
        stored events; a top-level domain never is.
        """
        engine = self.make_tenzir(self.node.endpoint, subdomains=True)
        entries = [entry(Kind.DOMAIN, name) for name in ("evil.example", "example", "x.b.c.d")]
        engine.add([entries])
        timer = threading.Timer(60, engine.interrupt)
        timer.start()
        self.addCleanup(timer.cancel)
        names = ("a.b.c.Evil.Example.", "evil.example", "notevil.example", "b.c.d", "y.x.b.c.d")
        found: list[Match] = []
        watch: Any = engine.watch(unheeded)
        with closing(watch):
            self.assertEqual(next(watch), [])
            self.arrive(*({"event_type": "tls", "tls": {"sni": name}} for name in names))
            while len(found) < 3:
                found += next(watch)
        for matches in (found, _found(engine, entries)):
            self.assertEqual(
                sorted((m.event["tls"]["sni"], [hit.value for hit in m.hits]) for m in matches),
                [
                    ("a.b.c.Evil.Example.", ["evil.example"]),
                    ("evil.example", ["evil.example"]),
                    ("y.x.b.c.d", ["x.b.c.d"]),
                ],
            )
        (plain,) = _found(self.engine, entries)
        self.assertEqual(plain.event["tls"]["sni"], "evil.example")

    def test_real_logs(self) -> None:
        """
        In real logs, every name of a file, user agent and certificate is found as
        often as it is there.
        """
        there: Counter[Observable] = Counter()

        def note(kind: Kind, *texts: str | None) -> None:
            there.update(normalise(kind, text) for text in texts if text and text != "-")

        by_type: dict[str, list[str]] = {}
        for line in _log("suricata/eve-verify.json.gz"):
            event = json.loads(line)
            by_type.setdefault(event["event_type"], []).append(line)
            if event["event_type"] in ("http", "fileinfo"):
                note(Kind.USER_AGENT, event.get("http", {}).get("http_user_agent"))
            note(Kind.FILE_NAME, event.get("fileinfo", {}).get("filename"))
            note(Kind.FILE_NAME, event.get("ftp_data", {}).get("filename"))
            note(Kind.CERTIFICATE, event.get("tls", {}).get("fingerprint"))
        for lines in by_type.values():
            self.node.feed("\n".join(lines), "suricata")
        tsv = _log("zeek-tsv/http.log.gz")
        columns = next(line.split("\t")[1:] for line in tsv if line.startswith("#fields"))
        for line in tsv:
            if not line.startswith("#"):
                row = dict(zip(columns, line.split("\t"), strict=True))
                note(Kind.USER_AGENT, row["user_agent"])
                note(Kind.FILE_NAME, row["filename"])
        self.node.run("from_stdin { read_zeek_tsv } | import", "\n".join(tsv))
        for name in ("http", "files"):
            lines = _log(f"zeek-json/{name}.log.json.gz")
            for line in lines:
                event = json.loads(line)
                note(Kind.USER_AGENT, event.get("user_agent"))
                note(Kind.FILE_NAME, event.get("filename"), *event.get("resp_filenames", []))
            self.node.feed("\n".join(lines), "zeek-json")
        entries = [Entry(observable, ("indicator--1",)) for observable in there]
        found: Counter[Observable] = Counter()
        for page in self.engine.find(entries, 0, 120.0):
            found.update(Observable(hit.kind, hit.value) for match in page for hit in match.hits)
        self.assertEqual(found, there)
        self.assertEqual({each.kind for each in there}, LOGGED)

    def test_cut(self) -> None:
        """
        Events with lists that are longer than what is looked at are counted, with
        a match or without; the others are not.
        """
        self.engine.add([[entry(Kind.DOMAIN, "here.example"), entry(Kind.DOMAIN, "late.example")]])
        timer = threading.Timer(60, self.engine.interrupt)
        timer.start()
        self.addCleanup(timer.cancel)
        found: list[Match] = []
        watch: Any = self.engine.watch(unheeded)
        with closing(watch):
            self.assertEqual(next(watch), [])
            full = [f"{n}.example" for n in range(POSITIONS)]
            certificates = (
                ("a.b", [*full, "late.example"]),
                ("here.example", [*full, "late.example"]),
                ("a.b", full),
                ("here.example", ["late.example"]),
            )
            self.arrive(
                *(
                    {"event_type": "tls", "tls": {"sni": sni, "subjectaltname": alternatives}}
                    for sni, alternatives in certificates
                )
            )
            while len(found) < 2:
                found += next(watch)
        self.assertEqual(dict(self.engine.cut), {"suricata.tls": 2})
        self.assertEqual(
            sorted([hit.field for hit in match.hits] for match in found),
            [["tls.sni"], ["tls.sni", "tls.subjectaltname[0]"]],
        )

    def test_schema(self) -> None:
        """
        A match names the event's schema, and its event has nothing of ours in it.
        """
        self.arrive(event(1))
        (match,) = _found(self.engine, [ADDRESS])
        self.assertEqual(match.schema, "suricata.http")
        self.assertEqual([name for name in match.event if name.startswith("_")], [])

    def test_own_mark(self) -> None:
        """
        An event that has our mark already cannot say what it matched.
        """
        forged = {"s": "x", "f0": {"k": "ip", "v": "1.2.3.4", "ids": ["indicator--9"]}}
        self.node.feed(json.dumps({pipelines.FINDINGS: forged, "src_ip": "10.0.0.1"}))
        slots = {f"{pipelines.FINDINGS}_f{number}": forged["f0"] for number in range(400)}
        self.node.feed(json.dumps({pipelines.FINDINGS: forged, "src_ip": "203.0.113.7", **slots}))
        (match,) = _found(self.engine, [ADDRESS])
        self.assertEqual([hit.ids for hit in match.hits], [ADDRESS.ids])


def _log(name: str) -> list[str]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as log:
        return log.read().splitlines()


def _hits(matches: Sequence[Match]) -> list[tuple[str, Observable]]:
    return sorted(
        (hit.field, Observable(hit.kind, hit.value)) for match in matches for hit in match.hits
    )


def _found(engine: IEngine, entries: Sequence[Entry], limit: int = 0) -> list[Match]:
    return [match for batch in engine.find(entries, limit, 60.0) for match in batch]


HOSTILE = [
    'a"b', "a|b", "a\\b", "// x", "/* x */", "a\nb", "a\x00b", "a\u2028b", "\u202eevil",
    "😀", "true", "2026-01-01", "12345", '{"a": 1}', "$(reboot)", "'; drop", " a ", "null",
]  # fmt: skip


class HazardTests(TenzirTestCase):
    """
    What was seen to go wrong with the engine does not.
    """

    def test_hostile_values(self) -> None:
        """
        Whatever a value looks like, it is stored as it is, and matches only itself.
        """
        entries = [entry(Kind.DOMAIN, f"{value}.example", f"i {value}") for value in HOSTILE]
        self.engine.add([entries])
        self.assertEqual(
            sorted(self.engine.contents(), key=lambda e: e.observable),
            sorted(entries, key=lambda e: e.observable),
        )
        hosts = [f"{value}.example" for value in HOSTILE]
        self.arrive(*(event(number, hostname=host) for number, host in enumerate(hosts)))
        found = _found(self.engine, entries)
        self.assertEqual(
            sorted((m.event["flow_id"], m.hits[0].value) for m in found),
            list(enumerate(hosts)),
        )
        self.engine.remove([e.observable for e in entries])
        self.assertEqual(self.engine.contents(), [])

    def test_metrics(self) -> None:
        """
        The node does not store, several times a second, a profile of each operator of the live
        match: there are thousands of them.
        """
        counting = "export internal=true\nname = @name\nsummarize name, count=count()\nwrite_ndjson"

        def stored() -> Counter[str]:
            rows = map(json.loads, self.node.run(counting).splitlines())
            return Counter({row["name"]: row["count"] for row in rows})

        watch: Any = self.engine.watch(unheeded)
        with closing(watch):
            self.assertEqual(next(watch), [])
            before = stored()
            others = "tenzir.metrics.actor"
            wait_until(lambda: stored()[others] > before[others] + 10)
            profile = "tenzir.metrics.operator_profile"
            self.assertEqual(stored()[profile], before[profile])

    def test_null_key(self) -> None:
        """
        A value that the engine makes nothing of does not match all the events
        that lack a field.
        """
        self.engine.add([[entry(Kind.IP, "zonk"), entry(Kind.NETWORK, "zonk")]])
        self.node.feed('{"a": 1, "src_ip": null}\n{"b": 2}')
        self.assertEqual(self.engine.contents(), [])
        self.assertEqual(_found(self.engine, [entry(Kind.IP, "zonk"), ADDRESS]), [])

    def test_prepare_keeps_running_match(self) -> None:
        """
        A match that runs goes on finding when the engine is prepared again.
        """
        watch: Any = self.engine.watch(unheeded)
        with closing(watch):
            self.assertEqual(next(watch), [])
            self.engine.prepare()
            self.engine.add([[ADDRESS]])
            self.arrive(event(1))
            self.assertEqual(len(next(watch)), 1)

    def test_killed_node_forgets(self) -> None:
        """
        A node that was killed is prepared and filled again, and matches.
        """
        self.engine.add([[ADDRESS, HOST]])
        self.arrive(event(1))
        self.node.kill()
        self.node.start()
        self.engine.prepare()
        held = {e.observable for e in self.engine.contents()}
        self.assertLessEqual(held, {ADDRESS.observable, HOST.observable})
        self.engine.add([[ADDRESS]])
        self.assertEqual(len(_found(self.engine, [ADDRESS])), 1)

    def test_restart_during_watch(self) -> None:
        """
        A live match whose node is gone is given up, instead of being blind. A node that was killed
        has no tables.
        """
        self.patch(tenzir_engine, "SILENCE_SECONDS", 6.0)
        watch: Any = self.make_tenzir(self.node.endpoint).watch(unheeded)
        with closing(watch):
            self.assertEqual(next(watch), [])
            self.node.kill()
            self.node.start()
            self.assertRaises(EngineTablesChanged, next, watch)

    def test_long_event(self) -> None:
        """
        An event of more than 64 KiB is matched live and in a search.
        """
        self.engine.add([[HOST]])
        watch: Any = self.engine.watch(unheeded)
        with closing(watch):
            self.assertEqual(next(watch), [])
            self.arrive(event(1, hostname="evil.example", url="/" + "x" * 300_000))
            ((match,), (again,)) = next(watch), _found(self.engine, [HOST])
        self.assertEqual(len(match.event["http"]["url"]), 300_001)
        self.assertEqual(match.event, again.event)

    def test_many(self) -> None:
        """
        Tens of thousands of entries are written, read back and removed at once.
        """
        entries = [
            *(entry(Kind.IP, f"10.{n >> 8}.{n & 255}.1") for n in range(20_000)),
            *(entry(Kind.DOMAIN, f"h{n}.example") for n in range(20_000)),
            *(entry(Kind.NETWORK, f"172.{n >> 8}.{n & 255}.0/24") for n in range(2_000)),
        ]
        self.engine.add([entries])
        self.assertEqual(len(self.engine.contents()), len(entries))
        self.engine.remove([e.observable for e in entries])
        self.assertEqual(self.engine.contents(), [])

    def test_other_hits_survive_limit(self) -> None:
        """
        An observable that is seen too often hides no other in the same events.
        """
        hosts = [*["x.example"] * 19, "evil.example"]
        self.arrive(*(event(number, hostname=host) for number, host in enumerate(hosts)))
        found = _found(self.engine, [ADDRESS, HOST], 2)
        seen = [hit.value for match in found for hit in match.hits]
        self.assertEqual(sorted(seen), ["203.0.113.7", "203.0.113.7", "evil.example"])

    def test_all_results(self) -> None:
        """
        A search that finds more than a page of events finds all of them.
        """
        count = 5_000
        events = [{"src_ip": "203.0.113.7", "n": n} for n in range(count)]
        self.node.feed("\n".join(map(json.dumps, events)))
        found = _found(self.engine, [ADDRESS, ABSENT])
        self.assertEqual(sorted(m.event["n"] for m in found), list(range(count)))


class EndingTests(TenzirTestCase):
    """
    Calls end when they are told to, and leave nothing behind.
    """

    def in_thread(self, call: Callable[[], object]) -> list[BaseException | None]:
        """
        Make a call in a thread.

        @return: What it raised, once it has ended.
        """
        outcome: list[BaseException | None] = []

        def run() -> None:
            try:
                call()
            except BaseException as e:
                outcome.append(e)
            else:
                outcome.append(None)

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        return outcome

    def test_interrupt_watch(self) -> None:
        """
        An interrupt ends a live match within a second or so.
        """
        watch: Any = self.engine.watch(unheeded)
        started = threading.Event()

        def iterate() -> None:
            with closing(watch):
                for _ in watch:
                    started.set()

        outcome = self.in_thread(iterate)
        self.assertTrue(started.wait(60))
        asked = time.monotonic()
        self.engine.interrupt()
        wait_until(lambda: outcome)
        self.assertLess(time.monotonic() - asked, 2.0)
        self.assertIsInstance(outcome[0], EngineInterrupted)

    def test_close_from_elsewhere(self) -> None:
        """
        Another thread can end one match, while other calls go on.
        """
        watch: Any = self.engine.watch(unheeded)
        started = threading.Event()

        def iterate() -> None:
            with closing(watch):
                for _ in watch:
                    started.set()

        outcome = self.in_thread(iterate)
        self.assertTrue(started.wait(60))
        watch.close()
        wait_until(lambda: outcome)
        self.assertIsInstance(outcome[0], EngineInterrupted)
        self.assertEqual(self.engine.contents(), [])

    def test_no_port(self) -> None:
        """
        For the live match no command runs here, and nothing listens on a port.
        """
        watch: Any = self.engine.watch(unheeded)
        with closing(watch):
            self.assertEqual(next(watch), [])
            commands = [pid for pid in children(os.getpid()) if pid != self.node.pid]
            self.assertEqual(commands, [])
            self.assertEqual(listening(os.getpid()), [])

    def test_time_limit(self) -> None:
        """
        A search that takes too long is ended, in the node too.
        """
        self.arrive(event(1))
        self.assertRaises(EngineTimeout, list, self.engine.find([ADDRESS], 0, 0.0))
        self.assertEqual(json.loads(self.node.run(_PIPELINES))["pipelines"], [])
        self.assertEqual(len(_found(self.engine, [ADDRESS])), 1)

    def test_slow_command(self) -> None:
        """
        A search of which one command takes too long has failed, and has to be made again:
        it has not run out of its own time.
        """

        def slow(*arguments: object) -> None:
            raise EngineTimeout("find", 30.0)

        self.patch(NodeCalls, "ask", slow)
        self.assertRaises(EngineCallFailed, list, self.engine.find([ADDRESS], 0, 60.0))

    def test_frozen_node(self) -> None:
        """
        A node that does not answer is not waited for.
        """
        self.node.freeze()
        outcome = self.in_thread(self.engine.contents)
        wait_until(lambda: outcome, 20)
        self.assertIsInstance(outcome[0], (EngineUnreachable, EngineTimeout))

    def test_nobody(self) -> None:
        """
        Where no node listens, the error says so.
        """
        engine = self.make_tenzir(f"127.0.0.1:{free_ports(1)[0]}")
        e = self.assertRaises(EngineUnreachable, engine.identify)
        self.assertIn("cannot be reached", str(e))

    def test_refused(self) -> None:
        """
        What the engine refuses is an error that says why.
        """
        self.patch(pipelines, "list_tables", lambda: "no_such_operator\n")
        e = self.assertRaises(EngineCallFailed, self.engine.prepare)
        self.assertIn("no_such_operator", str(e))

    def test_too_old(self) -> None:
        """
        A node that is too old is refused.
        """
        self.patch(tenzir_engine, "OLDEST_VERSION", (99, 0))
        engine = self.make_tenzir(self.node.endpoint)
        e = self.assertRaises(EngineUnsupported, engine.identify)
        self.assertIn("Tenzir 99.0 or newer is needed", str(e))

    def test_other_version(self) -> None:
        """
        A node that does not understand the command is of another version.
        """
        command = Path(self.mktemp()).resolve()
        command.write_text("#!/bin/sh\necho 'error: !! unexpected_message' >&2\nexit 1\n")
        command.chmod(0o700)
        engine = TenzirEngine(self.node.endpoint, str(command), Path(self.mktemp()), BRIDGE)
        e = self.assertRaises(EngineCallFailed, engine.identify)
        self.assertIn("different versions; Tenzir 6.20 or newer is needed", str(e))


_PIPELINES = 'api "/pipeline/list"\nwrite_ndjson'
