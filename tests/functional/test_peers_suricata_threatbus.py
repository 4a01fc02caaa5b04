"""
C{suricata-threatbus} as the client of a plugin, without a Suricata.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from random import Random

from twisted.internet.threads import deferToThread

from tbvast.protocol.manage import encode_publish
from tests.documents import document
from tests.functional.components import wait_until
from tests.functional.peers import SURICATA_THREATBUS, PeersTestCase, publish, write_command
from tests.functional.test_main_job import indicator


def rule(sid: int) -> str:
    """
    A rule for Suricata.
    """
    return (
        f'alert dns any any -> any any (msg:"bad"; dns.query; content:"bad{sid}.example";'
        f" sid:{sid}; rev:1;)"
    )


MADE_UP = 1000
"""
How many made-up documents are published.
"""

ODD_RULES = (
    "", "no rule", "alert", "alert dns any any -> any any (", "a\nb", "a\r\nb", "\0", "\u2028",
    *(f'alert dns any any -> any any (msg:"x"; sid:{sid}; rev:1;)' for sid in (
        "(", "[", "*", "x", "", "5+", " 77 ", "2000009 ", "\\", "'5'", '"("', "9" * 30,
    )),
    "alert dns any any -> any any (msg:\"x\"; sid; rev:1;)",
    "alert dns any any -> any any (sid)",
    "alert dns any any -> any any (msg:\"x\"; sid:5)+(; rev:1;)",
    r'alert dns any any -> any any (msg:"x\"; sid:(; rev:"1";)',
)  # fmt: skip
"""
What may stand where a rule should; some of it the program could not live with.
"""


class SuricataThreatbusTests(PeersTestCase):
    """
    It keeps a file of rules as the bus says.
    """

    timeout = 400

    async def test_rules(self) -> None:
        """
        Rules come with the snapshot and as they are published, and go when they are
        withdrawn; patterns of other kinds do no harm. So it goes on after restarts of
        the plugin, be they short or long.
        """
        folder = self.directory()
        rules, reloads = folder / "threatbus.rules", folder / "reloads"
        rules.touch()
        write_command(folder / "suricatasc", f'echo "$@" >>{shlex.quote(str(reloads))}')
        bus = self.plugin()
        client = await self.peer(
            SURICATA_THREATBUS,
            {
                "threatbus": str(bus.manage),
                "snapshot": 30,
                "rules_file": str(rules),
                "socket": "suricata.socket",
                "reload_interval": 1,
            },
            folder,
        )
        known = [
            indicator(rule(sid), pattern_type="suricata") for sid in range(2_000_000, 2_000_005)
        ]

        await bus.start()
        await publish(bus, known[0])
        client.start()
        await deferToThread(self.wait_for, rules, 0)
        await publish(bus, indicator("[ipv4-addr:value = '203.0.113.1']"))
        await publish(bus, known[1])
        await deferToThread(self.wait_for, rules, 0, 1)
        await publish(bus, known[0] | {"x_threatbus_update": "REMOVE"})
        await deferToThread(self.wait_for, rules, 1)

        # A short restart goes unnoticed: the subscription outlives it.
        await bus.stop()
        await publish(bus := await self.restarted(bus), known[2])
        await deferToThread(self.wait_for, rules, 1, 2)

        # After a long one, which its heartbeats notice, it subscribes again.
        await bus.stop()
        rules.write_text("")
        await client.saw("Subscription with Threat Bus host became invalid")
        await publish(bus := await self.restarted(bus), known[3])
        await client.saw("Unsubscription successful")
        await deferToThread(self.wait_for, rules, 1, 2, 3)
        await publish(bus, known[4])
        await deferToThread(self.wait_for, rules, 1, 2, 3, 4)

        self.assertIn("-c ruleset-reload-nonblocking suricata.socket\n", reloads.read_text())
        await client.stop()
        await bus.saw("unsubscribed after", times=2)

    async def test_odd_documents(self) -> None:
        """
        It survives whatever the bus accepts, as it is published and in the snapshot after
        its restart; the rule published next is written.
        """
        folder = self.directory()
        rules = folder / "threatbus.rules"
        rules.touch()
        write_command(folder / "suricatasc", "true")
        bus = self.plugin()
        client = await self.peer(
            SURICATA_THREATBUS,
            {
                "threatbus": str(bus.manage),
                "snapshot": 3650,
                "rules_file": str(rules),
                "socket": "suricata.socket",
                "reload_interval": 1,
            },
            folder,
        )
        await bus.start()
        client.start()
        await publish(bus, indicator(rule(2_000_000), pattern_type="suricata"))
        await deferToThread(self.wait_for, rules, 0)
        random = Random(14)
        made = [raw for _ in range(MADE_UP) if len(raw := document(random)) < 100_000]
        made += [json.dumps(indicator(odd, pattern_type="suricata")).encode() for odd in ODD_RULES]
        outcomes = []
        for start in range(0, len(made), 100):
            outcomes += (await bus.ask(encode_publish(made[start : start + 100])))["outcomes"]
        self.assertGreater(outcomes.count("accepted"), 200)
        self.assertGreater(outcomes.count("refused"), 200)
        await publish(bus, indicator(rule(2_000_001), pattern_type="suricata"))
        await deferToThread(self.wait_for_last, rules, 1)

        await client.stop()
        rules.write_text("")
        client = self.ending(client.again())
        client.start()
        await deferToThread(self.wait_for_last, rules, 1)
        await publish(bus, indicator(rule(2_000_002), pattern_type="suricata"))
        await deferToThread(self.wait_for_last, rules, 2)

    def wait_for_last(self, rules: Path, number: int) -> None:
        """
        Wait until the file holds a rule, whatever else.
        """
        wait_until(lambda: rule(2_000_000 + number) in rules.read_text().splitlines())

    def wait_for(self, rules: Path, *numbers: int) -> None:
        """
        Wait until the file holds some rules, and no others.
        """
        wanted = [rule(2_000_000 + number) for number in numbers]
        wait_until(lambda: sorted(rules.read_text().splitlines()) == wanted)
