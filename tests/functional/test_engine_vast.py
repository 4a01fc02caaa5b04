"""
The engine on the command line of the old VAST, for which a stand-in answers.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.vast import VastEngine, query
from tbvast.errors import EngineCallFailed, EngineMissing
from tbvast.interfaces import IEngine
from tbvast.stix.observables import Kind, Observable
from tbvast.values import Entry
from tests.doubles_engine import ADDRESS, HOST, EngineContract
from tests.functional import stand_in
from tests.functional.components import wait_until


class VastTestCase(SynchronousTestCase):
    """
    A test with a stand-in and an engine that is prepared.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        shutil.copy(stand_in.__file__, self.folder / "stand_in.py")
        self.binary = self.folder / "vast"
        self.binary.write_text(
            f'#!/bin/sh\nexec {sys.executable} "{self.folder}/stand_in.py" "$@"\n'
        )
        self.binary.chmod(0o700)
        self.engine = VastEngine("127.0.0.1:42000", str(self.binary), "abc")
        self.engine.prepare()


class VastEngineTests(VastTestCase, EngineContract):
    """
    L{VastEngine} is an engine, which does not tell what it has matched.
    """

    tells_covered = False

    def make_engine(self) -> IEngine:
        return self.engine

    def running(self, engine: IEngine) -> Any:
        """
        The engine does not say when it is attached: the stand-in does.
        """
        attached = self.folder / "attached"
        attached.unlink(missing_ok=True)
        watch = super().running(engine)
        wait_until(attached.exists)
        return watch

    def arrive(self, event: dict[str, Any]) -> None:
        with (self.folder / "events").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def test_identify(self) -> None:
        """
        It says its version as the old command did.
        """
        self.assertEqual(self.engine.identify().name, "vast")
        self.assertEqual(self.engine.identify().version, "2021.12.16-0-gabc")


HOSTILE = ('a"b', "a\\b", "a b", "-x", "--help", "a\nb", "a\x00b", "é", "", "\u202e")


class RefusalTests(VastTestCase):
    """
    What the command line might take for something else is not given to it.
    """

    def matched(self) -> list[str]:
        """
        @return: The values that the matcher of the stand-in has.
        """
        matchers = json.loads((self.folder / "matchers").read_text())
        return list(matchers["tbvast-abc"])

    def test_hostile(self) -> None:
        """
        Values that would have to be escaped are left out; the others go in.
        """
        entries = [Entry(Observable(Kind.DOMAIN, value), ("i",)) for value in HOSTILE]
        self.engine.add([[*entries, HOST]])
        self.assertEqual(self.matched(), [HOST.observable.value])
        self.assertCountEqual(self.engine.contents(), [*entries, HOST])
        self.engine.remove([each.observable for each in entries])
        self.assertEqual(self.engine.contents(), [HOST])
        self.assertEqual(list(self.engine.find(entries, 0, 60.0)), [])

    def test_hostile_ids(self) -> None:
        """
        The same goes for ids.
        """
        for id in ("i,j", '"'):
            self.engine.add([[Entry(HOST.observable, (id,))]])
        self.assertEqual(self.matched(), [])

    @given(st.sampled_from(Kind), st.from_regex(r"[!#-\[\]-~]+", fullmatch=True))
    def test_query(self, kind: Kind, value: str) -> None:
        """
        A value stands in a query as it is, in quotes or alone.
        """
        text = query(Observable(kind, value))
        parts = (value,) if kind is not Kind.URL else (value.partition("/")[0],)
        for part in parts:
            self.assertIn(part, text)
        self.assertEqual(text.count('"') % 2, 0)

    def test_missing(self) -> None:
        """
        A command that is not there is said to be missing, not sought elsewhere.
        """
        self.binary.unlink()
        self.assertRaises(EngineMissing, self.engine.identify)

    def test_failing(self) -> None:
        """
        What the command says when it fails is in the error.
        """
        self.binary.write_text("#!/bin/sh\necho '!! no such thing' >&2; exit 1\n")
        e = self.assertRaises(EngineCallFailed, self.engine.add, [[ADDRESS]])
        self.assertIn("no such thing", str(e))
