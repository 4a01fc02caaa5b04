"""
The demonstration: a bus, a bridge and a real engine, on real input.
"""
