"""
The other end of a bus: how bridge, upstream bus and command line use it.
"""
