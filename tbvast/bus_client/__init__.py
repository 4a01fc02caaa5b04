"""
The client side of a bus, for the bridge, a bus with an upstream, and the command line.
"""
