"""
Tests for L{tbvast.stix.observables}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import ObservableInvalid, PatternUnmatchable
from tbvast.stix.observables import (
    UNESCAPED,
    Kind,
    Observable,
    guess,
    normalise,
    pattern_for,
    refang,
    unescaped,
)
from tbvast.stix.pattern_conditions import matchable

JA4 = "t13d1516h2_8daaf6152771_e5627efa2ab1"
SHA256 = "2e4c462b3424afcc04f43429d5f001e4ef9a28143bfeefb9af2254b4df3a7c1a"

_ALPHABET = "abxX019-_.:/@[]()%?#'\\ *é。‎\x00\ud800"
texts = (
    st.text(_ALPHABET)
    | st.text()
    | st.ip_addresses().map(str)
    | st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 130))
    | st.emails()
    | st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "hxxps", "FTP", "h"]),
        st.text(_ALPHABET, max_size=12) | st.just("evil[.]example:8080"),
        st.text(_ALPHABET, max_size=12),
    )
)


class NormaliseTests(SynchronousTestCase):
    """
    Tests for L{normalise}.
    """

    def assertNormal(self, kind: Kind, text: str, value: str, as_kind: Kind | None = None) -> None:
        """
        C{text} becomes C{value}, of C{kind} unless C{as_kind} is given.
        """
        self.assertEqual(normalise(kind, text), Observable(as_kind or kind, value))

    def assertRefused(self, kind: Kind, text: str, *said: str) -> None:
        """
        C{text} is refused by a single line with certain words.
        """
        error = self.assertRaises(ObservableInvalid, normalise, kind, text)
        for words in said:
            self.assertIn(words, str(error))
        self.assertNotIn("\n", str(error))

    def test_addresses(self) -> None:
        """
        Addresses are compressed and lower case; IPv4 in IPv6 is IPv4.
        """
        self.assertNormal(Kind.IP, "192.0.2.1", "192.0.2.1")
        self.assertNormal(Kind.IP, "2001:0DB8:0:0::0001", "2001:db8::1")
        self.assertNormal(Kind.IP, "::ffff:192.0.2.1", "192.0.2.1")
        self.assertNormal(Kind.IP, "192[.]0[.]2[.]1", "192.0.2.1")
        self.assertNormal(Kind.IP, "192.0.2.1/32", "192.0.2.1")
        self.assertNormal(Kind.IP, "2001:db8::1/128", "2001:db8::1")
        self.assertNormal(Kind.IP, "::ffff:192.0.2.1/128", "192.0.2.1")

    def test_no_addresses(self) -> None:
        """
        Malformed addresses are refused, leading zeros and zones included.
        """
        for text in (
            "",
            "192.0.2",
            "192.0.2.256",
            "192.0.2.01",
            "192.0.2.1.",
            "192.0.2.1 ",
            "192.0.2.1\n",
            "0x7f.0.0.1",
            "fe80::1%eth0",
            "::ffff:192.0.2.256",
            "evil.example",
            "１92.0.2.1",
        ):
            self.assertRefused(Kind.IP, text, "ip: ", "an IPv4 or IPv6 address")

    def test_networks(self) -> None:
        """
        Networks lose their host bits; an address may be one.
        """
        self.assertNormal(Kind.NETWORK, "192.0.2.77/24", "192.0.2.0/24")
        self.assertNormal(Kind.NETWORK, "2001:DB8::1/32", "2001:db8::/32")
        self.assertNormal(Kind.NETWORK, "::ffff:192.0.2.0/120", "192.0.2.0/24")
        self.assertNormal(Kind.IP, "223.166.0.0/15", "223.166.0.0/15", Kind.NETWORK)
        self.assertNormal(Kind.NETWORK, "192.0.2.1", "192.0.2.1", Kind.IP)
        self.assertNormal(Kind.NETWORK, "10.0.0.0/8", "10.0.0.0/8")

    def test_no_networks(self) -> None:
        """
        Broken networks are refused, and those that would match by chance.
        """
        for text in ("192.0.2.0/33", "192.0.2.0/", "192.0.2.0/255.255.255.0", "a/8", "1.2.3.4/٣"):
            self.assertRefused(Kind.NETWORK, text, "an IPv4 or IPv6 network")
        for text in ("0.0.0.0/0", "10.0.0.0/7", "::ffff:0:0/96"):
            self.assertRefused(Kind.NETWORK, text, "/8 or narrower")
        for text in ("::/0", "2000::/3"):
            self.assertRefused(Kind.NETWORK, text, "/16 or narrower")

    def test_domains(self) -> None:
        """
        Domains are lower case, in ASCII, without the trailing dot.
        """
        self.assertNormal(Kind.DOMAIN, "WWW.Evil.Example.", "www.evil.example")
        self.assertNormal(Kind.DOMAIN, "_dmarc.evil.example", "_dmarc.evil.example")
        self.assertNormal(Kind.DOMAIN, "evil[.]example", "evil.example")
        self.assertNormal(Kind.DOMAIN, "Bücher.example", "xn--bcher-kva.example")
        self.assertNormal(Kind.DOMAIN, "straße.example", "xn--strae-oqa.example")
        self.assertNormal(Kind.DOMAIN, "日本語。example", "xn--wgv71a119e.example")
        self.assertNormal(Kind.DOMAIN, "a_b.bücher.example", "a_b.xn--bcher-kva.example")

    def test_addresses_as_domains(self) -> None:
        """
        An address written as a domain is an address.
        """
        self.assertNormal(Kind.DOMAIN, "192.0.2.1", "192.0.2.1", Kind.IP)
        self.assertNormal(Kind.DOMAIN, "2001:DB8::1", "2001:db8::1", Kind.IP)
        self.assertNormal(Kind.DOMAIN, "１９２.0.2.1", "192.0.2.1", Kind.IP)

    def test_no_domains(self) -> None:
        """
        Names that no resolver can look up are refused.
        """
        for text in (
            "",
            ".",
            "evil..example",
            "domain evil.example",
            "*.evil.example",
            "evil.example/path",
            "192.0.2.999",
            "010.0.0.1",
            f"{'a' * 64}.example",
            ".".join(["abc"] * 70),
            "i❤.example",
            "evil.example\n",
        ):
            self.assertRefused(Kind.DOMAIN, text, "a domain name")

    def test_invisible(self) -> None:
        """
        Invisible characters are refused, and named.
        """
        for text, name in (
            ("evil.example\x00", "U+0000"),
            ("evil\u200e.example", "U+200E"),
            ("evil\u202e.example", "U+202E"),
            ("evil\u00ad.example", "U+00AD"),
            ("evil\ud800.example", "U+D800"),
        ):
            self.assertRefused(Kind.DOMAIN, text, f"the invisible character {name}")
        self.assertRefused(Kind.URL, "http://evil.example/\r\nX: y", "U+000D")
        self.assertRefused(Kind.URL, "http://evil.example/\ud800", "U+D800")
        self.assertRefused(Kind.URL, "http://evil.example/\u202e", "U+202E")

    def test_urls(self) -> None:
        """
        URLs are reduced to the parts that events contain.
        """
        for text, value in (
            ("http://evil.example/x?y=1", "evil.example/x?y=1"),
            ("HTTPS://User:Secret@EVIL.example:443/X?Y#Z", "evil.example/X?Y"),
            ("http://evil.example", "evil.example/"),
            ("http://evil.example?y", "evil.example/?y"),
            ("http://evil.example#z", "evil.example/"),
            ("http://evil.example:8080/", "evil.example:8080/"),
            ("http://evil.example:080/", "evil.example/"),
            ("http://evil.example:/", "evil.example/"),
            ("http://192.0.2.1/x", "192.0.2.1/x"),
            ("http://[2001:DB8::1]:8080/x", "[2001:db8::1]:8080/x"),
            ("http://bücher.example/ü x", "xn--bcher-kva.example/%C3%BC%20x"),
            ("hxxps://evil[.]example/a[.]b", "evil.example/a[.]b"),
            ("hxxp[:]//evil(dot)example/", "evil.example/"),
            ("evil.example/x", "evil.example/x"),
            ("http://evil.example/a@b", "evil.example/a@b"),
        ):
            self.assertNormal(Kind.URL, text, value)

    def test_no_urls(self) -> None:
        """
        A URL needs a host that can be looked up.
        """
        for text in ("http://", "/path", "http:///x", "http://192.0.2.300/", "http://a b/"):
            self.assertRefused(Kind.URL, text, "a domain name or an address as its host")
        self.assertRefused(Kind.URL, "http://evil.example:65536/", "a port of at most 65535")
        self.assertRefused(Kind.URL, f"http://evil.example/{'a' * 9000}", "at most 8192 characters")

    def test_emails(self) -> None:
        """
        E-mail addresses are lower case, with a domain in ASCII.
        """
        self.assertNormal(Kind.EMAIL, "Mallory@EVIL.example", "mallory@evil.example")
        self.assertNormal(Kind.EMAIL, "o'b+x@bücher.example", "o'b+x@xn--bcher-kva.example")
        self.assertNormal(Kind.EMAIL, "mallory[at]evil[.]example", "mallory@evil.example")
        for text in (
            "evil.example",
            "@evil.example",
            "a@",
            "a b@evil.example",
            "A <a@b.example>",
            "a@192.0.2.1",
        ):
            self.assertRefused(Kind.EMAIL, text, "an e-mail address")

    def test_hashes(self) -> None:
        """
        Hashes are lower-case digits, as many as their kind has.
        """
        self.assertNormal(Kind.MD5, "D" * 32, "d" * 32)
        self.assertNormal(Kind.SHA1, "0" * 40, "0" * 40)
        self.assertNormal(Kind.SHA256, SHA256.upper(), SHA256)
        self.assertRefused(Kind.SHA256, "d" * 32, "64 hexadecimal digits")
        self.assertRefused(Kind.MD5, "g" * 32, "32 hexadecimal digits")
        self.assertRefused(Kind.MD5, "d" * 32 + "\n", "U+000A")

    def test_certificates(self) -> None:
        """
        A certificate's hash is digits without colons, of one of three lengths.
        """
        colons = ":".join(["AB"] * 20)
        self.assertNormal(Kind.CERTIFICATE, colons, "ab" * 20)
        self.assertNormal(Kind.CERTIFICATE, SHA256, SHA256)
        for text in ("", "ab" * 19, "xy" * 20):
            self.assertRefused(Kind.CERTIFICATE, text, "32, 40 or 64 hexadecimal digits")

    def test_handshakes(self) -> None:
        """
        Fingerprints of TLS clients are lower case.
        """
        self.assertNormal(Kind.JA3, "D" * 32, "d" * 32)
        self.assertNormal(Kind.JA3S, "0" * 32, "0" * 32)
        self.assertNormal(Kind.JA4, JA4.upper(), JA4)
        self.assertRefused(Kind.JA3, "d" * 31, "32 hexadecimal digits")
        for text in ("", JA4[1:], JA4 + "\n", "d" * 32):
            self.assertRefused(Kind.JA4, text, "a JA4 such as")

    def test_mac_addresses(self) -> None:
        """
        MAC addresses are lower case, with colons, however they are written.
        """
        for text in ("00:00:5E:00:53:0A", "00-00-5e-00-53-0a", "0000.5e00.530a"):
            self.assertNormal(Kind.MAC, text, "00:00:5e:00:53:0a")
        for text in ("", "00:00:5e:00:53", "00:00-5e:00:53:0a", "00005e00530a", "192.0.2.1"):
            self.assertRefused(Kind.MAC, text, "a MAC address such as")

    def test_file_names(self) -> None:
        """
        A file's name is the unchanged text after the directories.
        """
        for text in ("A b.exe", "C:\\x\\A b.exe", "/tmp/A b.exe", "x\\y/A b.exe"):
            self.assertNormal(Kind.FILE_NAME, text, "A b.exe")
        self.assertNormal(Kind.FILE_NAME, "fdp\u202eexe", "fdp\u202eexe")
        for text in ("", "/", "x/", "a\nb", "\ud800", "a" * 1025):
            self.assertRefused(Kind.FILE_NAME, text, "a file's name of at most 1024 characters")

    def test_user_agents(self) -> None:
        """
        User agents are compared as they are.
        """
        self.assertNormal(Kind.USER_AGENT, " Evil/1.0 (X; '\"|) ", " Evil/1.0 (X; '\"|) ")
        for text in ("", "a\0b", "\ud800", "a" * 8193):
            self.assertRefused(Kind.USER_AGENT, text, "a user agent of at most 8192 characters")

    @given(st.sampled_from(Kind), texts)
    def test_total_and_idempotent(self, kind: Kind, text: str) -> None:
        """
        Any text is refused, or has a normal form, which is its own normal form.
        """
        try:
            observable = normalise(kind, text)
        except ObservableInvalid as e:
            str(e).encode("utf-8")
            return
        self.assertEqual(normalise(observable.kind, observable.value), observable)
        if observable.kind in (Kind.FILE_NAME, Kind.USER_AGENT):
            self.assertTrue(observable.value.encode("utf-8"))
            return
        self.assertTrue(observable.value.isascii() and observable.value.isprintable())
        self.assertNotIn(" ", observable.value)


class GuessTests(SynchronousTestCase):
    """
    Tests for L{guess}.
    """

    def test_guessed(self) -> None:
        """
        The looks of a value tell its kind.
        """
        for text, kind, value in (
            (" 192.0.2.1\n", Kind.IP, "192.0.2.1"),
            ("2001:db8::1", Kind.IP, "2001:db8::1"),
            ("2001[:]db8::1", Kind.IP, "2001:db8::1"),
            ("192.0.2.0/24", Kind.NETWORK, "192.0.2.0/24"),
            ("2001:db8::/32", Kind.NETWORK, "2001:db8::/32"),
            ("192.0.2.1/index.html", Kind.URL, "192.0.2.1/index.html"),
            ("hxxp://evil[.]example/x", Kind.URL, "evil.example/x"),
            ("hxxp[://]evil[.]example/x", Kind.URL, "evil.example/x"),
            ("evil.example/x", Kind.URL, "evil.example/x"),
            ("mallory(at)evil.example", Kind.EMAIL, "mallory@evil.example"),
            ("d" * 32, Kind.MD5, "d" * 32),
            ("d" * 40, Kind.SHA1, "d" * 40),
            (SHA256, Kind.SHA256, SHA256),
            ("00-00-5E-00-53-0A", Kind.MAC, "00:00:5e:00:53:0a"),
            (JA4, Kind.JA4, JA4),
            ("evil(.)example", Kind.DOMAIN, "evil.example"),
            ("bücher.example", Kind.DOMAIN, "xn--bcher-kva.example"),
        ):
            self.assertEqual(guess(text), Observable(kind, value))

    def test_not_guessed(self) -> None:
        """
        Texts of an unknown form, and malformed ones, are refused.
        """
        for text in (
            "",
            "hello",
            "192.0.2.300",
            "192.0.2.1:80",
            "# comment",
            "d" * 33,
            "1.2.3.4/99",
        ):
            self.assertRaises(ObservableInvalid, guess, text)

    @given(texts)
    def test_total(self, text: str) -> None:
        """
        Any text is refused, or is an observable in its normal form.
        """
        try:
            observable = guess(text)
        except ObservableInvalid:
            return
        self.assertEqual(normalise(observable.kind, observable.value), observable)


class RefangTests(SynchronousTestCase):
    """
    Tests for L{refang}.
    """

    def test_plain(self) -> None:
        """
        Texts that are not defanged stay unchanged.
        """
        for text in ("evil.example", "http://u@evil.example/a[.]b?(at)#c", "http://[::1]/", ""):
            self.assertEqual(refang(text), text)


class PatternForTests(SynchronousTestCase):
    """
    Tests for L{pattern_for}.
    """

    def test_patterns(self) -> None:
        """
        Each kind has its object path; a range is a subset.
        """
        for text, pattern in (
            ("192.0.2.1", "[ipv4-addr:value = '192.0.2.1']"),
            ("2001:db8::1", "[ipv6-addr:value = '2001:db8::1']"),
            ("192.0.2.0/24", "[ipv4-addr:value ISSUBSET '192.0.2.0/24']"),
            ("evil.example", "[domain-name:value = 'evil.example']"),
            ("a@evil.example", "[email-addr:value = 'a@evil.example']"),
            ("http://evil.example/'\\", "[url:value = 'http://evil.example/\\'\\\\']"),
            ("d" * 32, f"[file:hashes.MD5 = '{'d' * 32}']"),
            (SHA256, f"[file:hashes.'SHA-256' = '{SHA256}']"),
            (JA4, f"[network-traffic:extensions.'tls-ext'.ja4 = '{JA4}']"),
            ("0000.5e00.530a", "[mac-addr:value = '00:00:5e:00:53:0a']"),
        ):
            self.assertEqual(pattern_for(guess(text)), pattern)

    @given(st.sampled_from(Kind), texts)
    def test_any_kind(self, kind: Kind, text: str) -> None:
        """
        A pattern of a value of any kind stands for it.
        """
        try:
            observable = normalise(kind, text)
        except ObservableInvalid:
            return
        self.assertEqual(matchable(pattern_for(observable)).observables, (observable,))

    def test_certificate(self) -> None:
        """
        A certificate's property goes by the length of the hash.
        """
        for digits in (32, 40, 64):
            observable = Observable(Kind.CERTIFICATE, "a" * digits)
            self.assertEqual(matchable(pattern_for(observable)).observables, (observable,))

    def test_spellings(self) -> None:
        """
        Properties that STIX does not have are understood as they are often written.
        """
        md5 = "d" * 32
        for path, value, kind in (
            ("network-traffic:extensions.'tls-ext'.ja3_hash", md5, Kind.JA3),
            ("network-traffic:extensions.'tls-ext'.JA3S", md5, Kind.JA3S),
            ("network-traffic:extensions.'tls-ext'.ja4_hash", JA4, Kind.JA4),
            ("x509-certificate:hashes.MD5", md5, Kind.CERTIFICATE),
            (
                "network-traffic:extensions.'http-request-ext'.request_header.'user-agent'",
                "A",
                Kind.USER_AGENT,
            ),
        ):
            self.assertEqual(
                matchable(f"[{path} = '{value}']").observables, (Observable(kind, value),)
            )
        for path in (
            "network-traffic:extensions.'tls-ext'.sni",
            "network-traffic:extensions.'tls-ext'.ja3.hash",
            "network-traffic:extensions.'http-request-ext'.request_header.Host",
            "url:hashes.MD5",
        ):
            self.assertRaises(PatternUnmatchable, matchable, f"[{path} = '{md5}']")

    def test_original(self) -> None:
        """
        A URL's pattern keeps the scheme that the original text has.
        """
        text = "hxxps://Evil[.]example/x"
        self.assertEqual(pattern_for(guess(text), text), "[url:value = 'https://Evil.example/x']")

    @given(texts)
    def test_round_trip(self, text: str) -> None:
        """
        A pattern stands for the observable it was made of.
        """
        try:
            observable = guess(text)
        except ObservableInvalid:
            return
        self.assertEqual(matchable(pattern_for(observable)).observables, (observable,))
        self.assertEqual(matchable(pattern_for(observable, text)).observables, (observable,))


class UnescapedTests(SynchronousTestCase):
    """
    Tests for L{unescaped}.
    """

    def unescaped(self, url: str) -> str | None:
        found = unescaped(normalise(Kind.URL, url))
        return None if found is None else found.value

    def test_undone(self) -> None:
        """
        Escapes of printable characters are undone, once.
        """
        self.assertEqual(
            self.unescaped("http://a.example/it%27s?x=%2541"), "unescaped a.example/it's?x=%41"
        )

    def test_none(self) -> None:
        """
        Without escapes, or with such as are logged in several ways, there is none.
        """
        for url in (
            "http://a.example/x",
            "http://a.example/100%",
            "http://a.example/%00",
            "http://a.example/%C3%A4",
        ):
            self.assertIsNone(self.unescaped(url))
        self.assertIsNone(unescaped(Observable(Kind.FILE_NAME, "%41")))

    @given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20))
    def test_no_url(self, path: str) -> None:
        """
        It is never that of a URL in its normal form.
        """
        found = unescaped(Observable(Kind.URL, f"a.example/{path}"))
        if found is not None:
            self.assertIn(" ", found.value)
            self.assertNotEqual(normalise(Kind.URL, found.value.removeprefix(UNESCAPED)), found)
