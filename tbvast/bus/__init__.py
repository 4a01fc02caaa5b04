"""
The parts of the bus plugin.
"""
