"""
ZeroMQ on Twisted: sockets, CURVE keys and the ZAP handler. No decisions.
"""
