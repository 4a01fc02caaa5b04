"""
tbvast connects threat intelligence to network telemetry.
"""

__version__ = "0.1.0"
