"""
ZeroMQ under txZMQ factories: sockets and messages, no decisions.
"""
