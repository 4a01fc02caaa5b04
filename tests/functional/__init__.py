"""
Tests against real components: sockets, processes, engines.
"""
