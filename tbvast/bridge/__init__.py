"""
The bridge between a bus and a telemetry engine.
"""
