"""
Threat intelligence as values: no sockets, no clock, no files.
"""
