"""
Commands of the configuration: a context transform, and the sinks that replace the bus.
"""
