"""
The telemetry engines, as they are driven.
"""
