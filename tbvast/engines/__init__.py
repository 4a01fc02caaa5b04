"""
Drivers of the telemetry engines.
"""
