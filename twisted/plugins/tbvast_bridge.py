"""
What makes C{twistd tbvast-bridge} work.
"""

from twisted.application.service import ServiceMaker

tbvast_bridge = ServiceMaker(
    "tbvast-bridge",
    "tbvast.bridge.tap",
    "Connects a Tenzir or VAST node to a Threat Bus.",
    "tbvast-bridge",
)
