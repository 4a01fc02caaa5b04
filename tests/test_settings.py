"""
Tests for L{tbvast.settings}.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir import pipelines
from tbvast.errors import SettingsInvalid
from tbvast.settings.loader import decode, load, override
from tbvast.settings.schema import SECTIONS, BridgeSettings, PluginSettings, Settings
from tbvast.settings.types import keys_of
from tbvast.telemetry.known_fields import Source, SourceMapping, fields

EXAMPLE = Path(__file__).parent.parent / "tap.conf.example"


class DecodeTests(SynchronousTestCase):
    """
    Tests for L{decode} and L{load}.
    """

    def refuse(self, text: str, message: str) -> None:
        """
        C{text} is refused with C{message}.
        """
        e = self.assertRaises(SettingsInvalid, decode, text.encode(), "tap.conf")
        self.assertEqual(str(e), message)

    def test_empty(self) -> None:
        """
        An empty file, and empty sections, mean the defaults.
        """
        for text in [b"", b"# nothing\n", b"plugin:\nbridge:\n", b"{}"]:
            with self.subTest(text):
                self.assertEqual(decode(text), Settings())

    def test_values(self) -> None:
        """
        Every kind of value arrives typed.
        """
        settings = decode(
            b"""
plugin:
  host: "[::1]"
  manage: 1
  state_dir: /var/lib/bus
  heartbeat_timeout: 5
bridge:
  vast: 10.0.0.1:5158
  live_match: no
  sink: tee -a 'a file'
"""
        )
        self.assertEqual(
            settings.plugin,
            PluginSettings(host="::1", manage=1, state_dir="/var/lib/bus", heartbeat_timeout=5.0),
        )
        self.assertIs(type(settings.plugin.heartbeat_timeout), float)
        self.assertEqual(
            settings.bridge,
            BridgeSettings(vast="10.0.0.1:5158", live_match=False, sink="tee -a 'a file'"),
        )

    def test_empty_host(self) -> None:
        """
        An empty host is the loopback address, never every address.
        """
        for text in [b"plugin: {host: ''}", b"plugin:\n  host:\n"]:
            with self.subTest(text):
                self.assertEqual(decode(text).plugin.host, "127.0.0.1")

    def test_bad_values(self) -> None:
        """
        An unacceptable value is named with its key and the accepted values.
        """
        for section, line, message in [
            ("plugin", "manage: 0", "plugin.manage: 0 is not a whole number from 1 to 65535"),
            ("plugin", "pub: yes", "plugin.pub: True is not a whole number from 1 to 65535"),
            ("plugin", "sub: '1'", "plugin.sub: '1' is not a whole number from 1 to 65535"),
            ("plugin", "manage:", "plugin.manage: None is not a whole number from 1 to 65535"),
            ("plugin", "host: a b", "plugin.host: 'a b' is not an IP address or a host name"),
            ("plugin", "host: '[]'", "plugin.host: '[]' is not an IP address or a host name"),
            ("plugin", "host: 1", "plugin.host: 1 is not an IP address or a host name"),
            (
                "plugin",
                "loglevel: loud",
                "plugin.loglevel: 'loud' is not one of debug, info, warn, error, critical",
            ),
            (
                "plugin",
                "detached_timeout: .nan",
                "plugin.detached_timeout: nan is not a number of seconds from 0.1 to 86400",
            ),
            (
                "plugin",
                "max_message_bytes: 12",
                "plugin.max_message_bytes: 12 is not "
                "a whole number of bytes from 8388608 to 1073741824",
            ),
            ("plugin", "state_dir: ''", "plugin.state_dir: '' is not the path of a directory"),
            ("bridge", "live_match: 1", "bridge.live_match: 1 is not yes or no"),
            ("bridge", "engine: splunk", "bridge.engine: 'splunk' is not one of tenzir, vast"),
            (
                "bridge",
                "vast: there",
                "bridge.vast: 'there' is not auto or HOST:PORT "
                "(an IPv6 address in square brackets)",
            ),
            (
                "bridge",
                'sink: "it\'s"',
                'bridge.sink: "it\'s" is not a command with its arguments, every quote closed',
            ),
        ]:
            with self.subTest(line):
                self.refuse(f"{section}:\n  {line}\n", message)

    def test_fields(self) -> None:
        """
        A field map lists the paths of each kind, as a list or with commas.
        """
        settings = decode(
            b"""
bridge:
  fields:
    acme.*:
      ip: client.addr, hops[].addr
      file-name: [name]
    acme.vpn: {replace: yes}
"""
        )
        self.assertEqual(
            settings.bridge.fields,
            (
                SourceMapping(
                    Source(
                        "acme.*",
                        fields("ip", "client.addr", "hops[].addr") + fields("file-name", "name"),
                    )
                ),
                SourceMapping(Source("acme.vpn", ()), True),
            ),
        )
        self.assertEqual(decode(b"bridge: {fields: }").bridge.fields, ())

    def test_bad_fields(self) -> None:
        """
        An unacceptable part of a field map is named with its path.
        """
        paths = "paths such as a.b[].c, separated by commas, each of at most 256 elements of lists"
        schema = "a schema's name, or the beginning of one and a *"
        for text, message in [
            ("[]", "bridge.fields: [] is not a mapping of schemas to their fields"),
            ("{a b: {}}", f"bridge.fields.a b: 'a b' is not {schema}"),
            ("{'*': {}}", f"bridge.fields.*: '*' is not {schema}"),
            ("{a: 1}", "bridge.fields.a: 1 is not a mapping of keys to values"),
            (
                "{a: {ips: b}}",
                "bridge.fields.a.ips: 'ips' is not a known key; the nearest is bridge.fields.a.ip",
            ),
            ("{a: {replace: 1}}", "bridge.fields.a.replace: 1 is not yes or no"),
            ("{a: {ip: 'b c'}}", f"bridge.fields.a.ip: 'b c' is not {paths}"),
            ("{a: {ip: 'b,'}}", f"bridge.fields.a.ip: '' is not {paths}"),
            ("{a: {ip: []}}", f"bridge.fields.a.ip: [] is not {paths}"),
            ("{a: {ip: [1]}}", f"bridge.fields.a.ip: 1 is not {paths}"),
            ("{a: {url: 'b[0]'}}", f"bridge.fields.a.url: 'b[0]' is not {paths}"),
            ("{a: {url: 'b[].c[40]'}}", f"bridge.fields.a.url: 'b[].c[40]' is not {paths}"),
            ("{a: {hash: 'b\"'}}", f"bridge.fields.a.hash: 'b\"' is not {paths}"),
        ]:
            with self.subTest(text):
                self.refuse(f"bridge:\n  fields: {text}\n", message)

    @given(st.text(), st.text(), st.text())
    def test_any_fields(self, schema: str, key: str, path: str) -> None:
        """
        Any field map gives a plan, or one readable line.
        """
        for known in (key, "ip"):
            fields = {schema: {known: path}, "a.b": {known: [path]}, "a.c": {"ip": "x"}}
            document = yaml.safe_dump({"bridge": {"fields": fields}}, allow_unicode=True)
            try:
                settings = decode(document.encode("utf-8", "surrogatepass"))
            except SettingsInvalid as e:
                self.assertNotIn("\n", str(e))
            else:
                pipelines.plan([each.source for each in settings.bridge.fields])

    def test_engine_that_cannot(self) -> None:
        """
        Settings that only one engine supports are refused with the other.
        """
        for key, line in (("subdomains", "subdomains: yes"), ("fields", "fields: {a: {ip: b}}")):
            self.refuse(
                f"bridge:\n  engine: vast\n  {line}\n",
                f"bridge.engine: 'vast' is not an engine that supports {key}: tenzir",
            )
        e = self.assertRaises(
            SettingsInvalid, override, BridgeSettings(subdomains=True), {"engine": "vast"}
        )
        self.assertEqual(
            str(e), "--engine: 'vast' is not an engine that supports subdomains: tenzir"
        )

    def test_unknown_key(self) -> None:
        """
        An unknown key is named with the nearest known one.
        """
        self.refuse(
            "plugin:\n  mange: 1\n",
            "plugin.mange: 'mange' is not a known key; the nearest is plugin.manage",
        )
        self.refuse("brigde: 1", "brigde: 'brigde' is not a known key; the nearest is bridge")
        self.refuse(
            "bridge: {1: 2}", "bridge.1: 1 is not a known key; the nearest is bridge.vast_plugins"
        )
        self.refuse(
            'bridge: {"si\\nk": 2}',
            "bridge.si\\nk: 'si\\nk' is not a known key; the nearest is bridge.sink",
        )

    def test_repeated_key(self) -> None:
        """
        A key given twice is refused with both lines.
        """
        self.refuse(
            "plugin:\n  pub: 1\n  sub: 2\n  pub: 3\n",
            "plugin.pub: 'pub' is not a key that may be given twice (lines 2 and 4)",
        )
        self.refuse(
            "plugin:\nplugin:\n",
            "plugin: 'plugin' is not a key that may be given twice (lines 1 and 2)",
        )

    def test_shared_port(self) -> None:
        """
        Two endpoints cannot have one port, be it one of them by default.
        """
        self.refuse(
            "plugin:\n  pub: 13370\n",
            "plugin.pub: 13370 is not a port of its own: plugin.manage has it already",
        )

    def test_broken(self) -> None:
        """
        Broken YAML is one line that names the file, the line and the column.
        """
        self.refuse(
            "plugin:\n\tpub: 1\n",
            "tap.conf, line 2, column 1: 'pub: 1' is not valid YAML: "
            "found character '\\t' that cannot start any token",
        )
        self.refuse("- 1", "tap.conf: [1] is not a mapping of keys to values")
        self.refuse("plugin: 7", "plugin: 7 is not a mapping of keys to values")

    def test_stumbling_blocks(self) -> None:
        """
        Errors that PyYAML does not wrap are one line too.
        """
        for text in [
            b'a: !!int ""',
            b"a: 2024-99-99",
            b"a: !!bool maybe",
            b"a: !!timestamp soon",
            b"a: !!python/name:os.system",
            b"\xff\xfe\x00",
            b"a: \x01",
            b"[" * 10_000,
            b"x: &a [*a]",
            b"x: &a {y: *a}",
            b"? [1]\n: 2",
            b"a: 1\n---\nb: 2",
        ]:
            with self.subTest(text[:40]):
                e = self.assertRaises(SettingsInvalid, decode, text)
                self.assertNotIn("\n", str(e))

    @given(st.binary() | st.text(alphabet="plugin:bred \n-[]{}'\"&*!?#|>1").map(str.encode))
    def test_any_bytes(self, text: bytes) -> None:
        """
        Any bytes give settings or one readable line.
        """
        try:
            decode(text)
        except SettingsInvalid as e:
            self.assertNotIn("\n", str(e))

    def test_load(self) -> None:
        """
        A file that cannot be read is named, with the reason.
        """
        path = self.mktemp()
        e = self.assertRaises(SettingsInvalid, load, path)
        self.assertEqual(
            str(e),
            f"--config: {path!r} is not a file that can be read: No such file or directory",
        )
        Path(path).write_text("plugin: {manage: 7}")
        self.assertEqual(load(path).plugin.manage, 7)


class OverrideTests(SynchronousTestCase):
    """
    Tests for L{override}.
    """

    def refuse(
        self, settings: PluginSettings | BridgeSettings, name: str, text: str, message: str
    ) -> None:
        """
        C{text} is refused with C{message}.
        """
        e = self.assertRaises(SettingsInvalid, override, settings, {name: text})
        self.assertEqual(str(e), message)

    def test_values(self) -> None:
        """
        Options replace the settings of the file; the others stay.
        """
        self.assertEqual(
            override(PluginSettings(pub=7), {"manage": "9", "host": ""}),
            PluginSettings(pub=7, manage=9),
        )
        self.assertEqual(
            override(
                BridgeSettings(),
                {"retro_match": "no", "retro_match_timeout": "1.5", "threatbus": "[::1]:1"},
            ),
            BridgeSettings(retro_match=False, retro_match_timeout=1.5, threatbus="[::1]:1"),
        )

    def test_refused(self) -> None:
        """
        The message names the option.
        """
        for name, text, message in [
            ("manage", "x", "--manage: 'x' is not a whole number from 1 to 65535"),
            ("manage", " 7", "--manage: ' 7' is not a whole number from 1 to 65535"),
            ("manage", "70000", "--manage: '70000' is not a whole number from 1 to 65535"),
            ("sub", "13370", "--sub: 13370 is not a port of its own: plugin.manage has it already"),
            ("state_dir", "", "--state-dir: '' is not the path of a directory"),
        ]:
            with self.subTest(name, text=text):
                self.refuse(PluginSettings(), name, text, message)
        for name, text, message in [
            ("retro_match", "true", "--retro-match: 'true' is not yes or no"),
            (
                "retro_match_timeout",
                "inf",
                "--retro-match-timeout: 'inf' is not a number of seconds from 0.1 to 86400",
            ),
            ("snapshot", "-1", "--snapshot: '-1' is not a whole number of days from 0 to 36500"),
        ]:
            with self.subTest(name, text=text):
                self.refuse(BridgeSettings(), name, text, message)

    @given(
        st.sampled_from([(s, name) for s in SECTIONS for name in keys_of(SECTIONS[s])]), st.text()
    )
    def test_any_text(self, key: tuple[str, str], text: str) -> None:
        """
        Any text for any key gives settings that the file could have given, or one
        readable line.
        """
        section, name = key
        before = SECTIONS[section]()
        try:
            settings = override(before, {name: text})  # type: ignore[type-var]
        except SettingsInvalid as e:
            self.assertNotIn("\n", str(e))
            return
        value = getattr(settings, name)
        document = yaml.safe_dump({section: {name: value}})
        self.assertEqual(getattr(decode(document.encode()), section), settings)


class ExampleTests(SynchronousTestCase):
    """
    C{tap.conf.example} agrees with the schema.
    """

    def test_valid(self) -> None:
        """
        It is a valid configuration, and gives every key its default.
        """
        self.assertEqual(load(str(EXAMPLE)), Settings())

    def test_complete(self) -> None:
        """
        It has every key, in the order of the fields, below its help.
        """
        text = EXAMPLE.read_text()
        document = yaml.safe_load(text)
        self.assertEqual(list(document), list(SECTIONS))
        for section, settings in SECTIONS.items():
            self.assertEqual(list(document[section]), list(keys_of(settings)))
        found = [
            (name, " ".join(comment.replace("#", " ").split()))
            for comment, name in re.findall(r"((?:^  # .*\n)+)  (\w+):", text, re.MULTILINE)
        ]
        documented = [
            (name, key.help) for s in SECTIONS.values() for name, key in keys_of(s).items()
        ]
        self.assertEqual(found, documented)
