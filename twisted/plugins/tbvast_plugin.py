"""
What makes C{twistd tbvast-plugin} work.
"""

from twisted.application.service import ServiceMaker

tbvast_plugin = ServiceMaker(
    "tbvast-plugin",
    "tbvast.bus.tap",
    "A Threat Bus: spreads indicators and sightings over ZeroMQ.",
    "tbvast-plugin",
)
