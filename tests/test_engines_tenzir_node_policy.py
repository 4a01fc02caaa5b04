"""
Tests for L{tbvast.engines.tenzir.node_policy}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir.node_policy import Plugin, disabled_plugins

INSTALLED = [
    Plugin("shell", ("operator",)),
    Plugin("from_file", ("operator",)),
    Plugin("read_suricata", ("operator",)),
    Plugin("export", ("operator",)),
    Plugin("context::enrich", ("operator",)),
    Plugin("serve", ("component", "operator", "rest_endpoint")),
    Plugin("where", ("operator", "tql2.function")),
    Plugin("new_thing", ("component", "operator")),
    Plugin("cache", ("component", "operator")),
    Plugin("to_lower", ("tql2.function",)),
    Plugin("count", ("tql2.aggregation_function", "tql2.function")),
    Plugin("file_contents", ("tql2.function",)),
    Plugin("env", ("tql2.function",)),
    Plugin("feather", ("store",)),
    Plugin("context", ("component",)),
    Plugin("kafka", ()),
    Plugin("where_ir", ()),
]


class DisabledPluginsTests(SynchronousTestCase):
    """
    Tests for L{disabled_plugins}.
    """

    def test_operators(self) -> None:
        """
        Only the operators that tbvast needs are left, none that the engine may get later; no
        connectors, and no functions that read something else than their arguments. The parts
        of the node stay.
        """
        self.assertEqual(
            disabled_plugins(INSTALLED, ()),
            [
                "cache",
                "env",
                "file_contents",
                "from_file",
                "kafka",
                "new_thing",
                "read_suricata",
                "shell",
            ],
        )

    def test_allowed(self) -> None:
        """
        Named ones are left, too.
        """
        allowed = ("from_file", "read_suricata", "kafka", "unknown", "env")
        self.assertEqual(
            disabled_plugins(INSTALLED, allowed), ["cache", "file_contents", "new_thing", "shell"]
        )
