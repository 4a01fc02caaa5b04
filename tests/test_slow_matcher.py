"""
The plain matcher that the bench compares with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.slow_matcher import Matcher, key, normal, read, values, wanted

LOG = """\
#path\thttp
#fields\tts\thost\turi\tresp_mime_types\treferrer
#types\ttime\tstring\tstring\tvector[string]\tstring
1313154481.360925\ta.example\t/a\\x5cb\\xc3\\xa9\tx,y\t-
1313154481.360925\ta.example\t/a\\x5cb\\xc3\\xa9\tx,y\t-
"""


class EventTests(SynchronousTestCase):
    """
    Files and events.
    """

    def test_key(self) -> None:
        """
        An event is the same one in the file and as the engine shows it.
        """
        there = {"ts": "2011-08-14T20:34:02.445519999Z", "uid": "C1", "trans_depth": 1}
        here = {"ts": "2011-08-14T20:34:02.445520Z", "uid": "C1", "trans_depth": "1"}
        self.assertEqual(key(here), key(there))
        self.assertNotEqual(key({**here, "trans_depth": "2"}), key(there))

    def test_tsv(self) -> None:
        """
        Of Zeek's own format escapes are undone; an event that is there twice is one.
        """
        path = Path(self.mktemp())
        path.write_text(LOG)
        found = read(path)
        event: dict[str, Any] = {
            "ts": "1313154481.360925",
            "host": "a.example",
            "uri": "/a\\bé",
            "resp_mime_types": ["x", "y"],
        }
        self.assertEqual((found.format, found.events), ("zeek-tsv", [("zeek.http", event)]))

    def test_formats(self) -> None:
        """
        What a file holds is seen by its events.
        """
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "eve.json").write_text('{"event_type":"dns"}\n')
        (folder / "dns.log").write_text('{"ts":1,"uid":"C1"}\n')
        eve, zeek = read(folder / "eve.json"), read(folder / "dns.log")
        self.assertEqual((eve.format, eve.events[0][0]), ("suricata", "suricata.dns"))
        self.assertEqual((zeek.format, zeek.events[0][0]), ("zeek-json", "zeek.dns"))
        self.assertEqual(zeek.text, '{"ts": 1, "uid": "C1", "_path": "dns"}\n')

    def test_values(self) -> None:
        """
        Each value of an event has one form, in whichever one it is written.
        """
        suricata = {
            "src_ip": "2001:DB8:0::1",
            "tls": {"sni": "A.example.", "fingerprint": "AB:CD", "ja3": {"hash": "EF"}},
            "http": {"hostname": "H.example", "url": "/x y", "http_port": 8080},
            "fileinfo": {"filename": "/a\\b/C.exe"},
            "email": {"from": "Some One <One@Example.org>", "to": ["x@y.example"]},
            "ether": {"src_mac": "00-00-5E-00-53-01"},
        }
        self.assertEqual(
            values(suricata),
            {
                ("ip", "2001:db8::1"),
                ("domain", "a.example"),
                ("certificate", "abcd"),
                ("ja3", "ef"),
                ("domain", "h.example"),
                ("url", "h.example:8080/x%20y"),
                ("file-name", "C.exe"),
                ("email", "one@example.org"),
                ("email", "x@y.example"),
                ("mac", "00:00:5e:00:53:01"),
            },
        )
        zeek = {"id.resp_p": 8080, "host": "h", "uri": "/x", "answers": ["1.2.3.4", "a.example"]}
        self.assertEqual(
            values(zeek),
            {
                ("domain", "h"),
                ("url", "h/x"),
                ("url", "h:8080/x"),
                ("undone", "h/x"),
                ("undone", "h:8080/x"),
                ("ip", "1.2.3.4"),
                ("domain", "a.example"),
            },
        )

    def test_proxy(self) -> None:
        """
        A request that is a whole URL needs no host, and has its own port.
        """
        for http in (
            {"url": "HTTP://A.example.:80?x"},
            {"hostname": "proxy.example", "url": "http://a.example/?x", "http_port": 3128},
        ):
            self.assertIn(("url", "a.example/?x"), values({"http": http}))
        self.assertEqual(values({"http": {"url": "/x"}}), set())

    def test_long_list(self) -> None:
        """
        Lists are looked at as far as it is said that they are.
        """
        names = [f"{n}.example" for n in range(30)]
        found = values({"answers": names, "tx_hosts": [f"10.0.0.{n}" for n in range(30)]})
        self.assertEqual(len(found), 24 + 8)


class PatternTests(SynchronousTestCase):
    """
    Patterns, and what matches them.
    """

    def texts(self, pattern: str) -> list[list[str]]:
        return [[term.text for term in terms] for terms in wanted(pattern)]

    def test_normal(self) -> None:
        """
        A value has one form, or is none.
        """
        for kind, text, expected in (
            ("ip", "::ffff:1.2.3.4", ("ip", "1.2.3.4")),
            ("ip", "1.2.3.4/31", ("network", "1.2.3.4/31")),
            ("ip", "1.2.3.4/32", ("ip", "1.2.3.4")),
            ("ip", "0.0.0.0/0", None),
            ("domain", "A.Example.", ("domain", "a.example")),
            ("domain", "1.2.3.4", ("ip", "1.2.3.4")),
            ("domain", "no name", None),
            ("url", "HTTPS://u@H.example:443?x#y", ("url", "h.example/?x")),
            ("url", "http://h.example:81/X Y", ("url", "h.example:81/X%20Y")),
            ("email", "X@Y.example", ("email", "x@y.example")),
            ("md5", "AB" * 16, ("md5", "ab" * 16)),
            ("md5", "ab", None),
            ("certificate", ":".join(["AB"] * 20), ("certificate", "ab" * 20)),
            ("file-name", "C:\\x\\Y.exe", ("file-name", "Y.exe")),
            ("mac", "0000.5E00.5301", ("mac", "00:00:5e:00:53:01")),
        ):
            self.assertEqual(normal(kind, text), expected)

    def test_alternatives(self) -> None:
        """
        What is wanted are alternatives, each with all that it needs.
        """
        a, b, c = (f"domain-name:value = '{name}'" for name in "abc")
        for pattern, expected in (
            (f"[{a} OR {b}]", [["a"], ["b"]]),
            (f"[{a}] OR ([{b}])", [["a"], ["b"]]),
            ("[domain-name:value IN ('a', 'b')]", [["a"], ["b"]]),
            (f"[{a} AND {b}]", [["a", "b"]]),
            (f"[{a} AND ({b} OR {c})]", [["a", "b"], ["a", "c"]]),
            (f"[{a} AND x:y = 1]", []),
            (f"[{a} OR x:y = 1]", [["a"]]),
            (f"[{a}] AND [{b}]", []),
            (f"[{a}] FOLLOWEDBY [{b}]", []),
            (f"[{a}] WITHIN 5 SECONDS OR [{b}]", [["b"]]),
            ("[domain-name:value NOT = 'a']", []),
            ("[domain-name:value != 'a']", []),
            ("[domain-name:value LIKE 'a']", []),
            ("[file:name = 'a\\\\b\\'c']", [["a\\b'c"]]),
            ("[ipv4-addr:value ISSUBSET '10.0.0.0/8']", [["10.0.0.0/8"]]),
        ):
            self.assertEqual(self.texts(pattern), expected, pattern)

    def test_matches(self) -> None:
        """
        An event is matched by the values and networks it holds, and no others; of two
        that are wanted together, by both.
        """
        patterns = {
            "address": "[ipv4-addr:value = '10.1.2.3']",
            "another": "[ipv4-addr:value = '10.1.2.4']",
            "network": "[ipv4-addr:value = '10.1.0.0/16']",
            "other network": "[ipv4-addr:value = '10.2.0.0/16']",
            "parent": "[domain-name:value = 'example']",
            "both": "[domain-name:value = 'A.example' AND ipv4-addr:value = '10.0.0.0/8']",
            "one": "[domain-name:value = 'a.example' AND ipv4-addr:value = '10.1.2.4']",
        }
        matcher = Matcher({id: wanted(pattern) for id, pattern in patterns.items()})
        event = {"src_ip": "10.1.2.3", "http": {"hostname": "A.example.", "url": "/x"}}
        self.assertEqual(
            matcher.matches(event),
            {
                "address": [{"10.1.2.3"}],
                "network": [{"10.1.0.0/16"}],
                "both": [{"A.example", "10.0.0.0/8"}],
            },
        )

    def test_undone(self) -> None:
        """
        In Zeek's log a URL is found with its escapes undone; in others it is not.
        """
        matcher = Matcher({"one": wanted("[url:value = 'http://h.example/it%27s%20']")})
        zeek = {"host": "h.example", "uri": "/it's ", "id.resp_p": 81}
        self.assertEqual(matcher.matches(zeek), {"one": [{"http://h.example/it%27s%20"}]})
        suricata = {"http": {"hostname": "h.example", "url": "/it's "}}
        self.assertEqual(matcher.matches(suricata), {})
