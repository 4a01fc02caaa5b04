"""
What the configuration says of fields, all the way to the sighting.
"""

from __future__ import annotations

import json

from twisted.internet.threads import deferToThread

from tbvast.protocol.manage import encode_publish
from tests.functional.components import require_tenzir, run
from tests.functional.raw import RawClient
from tests.functional.services import ServicesTestCase
from tests.functional.test_main_job import indicator

CONFIGURATION = """
bridge:
  subdomains: yes
  fields:
    acme.proxy:
      file-name: got[]
      domain: asked
      replace: yes
"""


class FieldMapTests(ServicesTestCase):
    """
    A bridge is told where to look.
    """

    timeout = 120

    async def test_configured(self) -> None:
        """
        Events of a schema that nobody knows are sighted where the configuration
        says, and domains in the names below them.
        """
        require_tenzir(self)
        path = self.directory() / "tap.conf"
        path.write_text(CONFIGURATION, encoding="utf-8")
        bus = self.plugin()
        bridge = self.bridge(bus.manage, f"--config={path}")
        await self.started(bus, bridge)
        client = RawClient(bus.manage.port)
        self.addCleanup(client.close)
        await deferToThread(client.subscribe, "stix2/sighting")
        patterns = ["[file:name = 'x.exe']", "[domain-name:value = 'evil.example']"]
        documents = [json.dumps(indicator(pattern)).encode() for pattern in patterns]
        await bus.ask(encode_publish(documents))
        await bridge.saw("The engine took 2 entries")
        event = {"asked": "a.b.Evil.example", "got": ["a", "/tmp/x.exe"]}
        pipeline = 'from_stdin { read_ndjson } | @name = "acme.proxy" | import'
        await deferToThread(run, bridge.client, pipeline, json.dumps(event))
        found = [(await deferToThread(client.receive))[1] for _ in patterns]
        self.assertEqual(
            sorted(sighting["x_threatbus_indicator_value"] for sighting in found),
            ["evil.example", "x.exe"],
        )
