"""
The journal: a file with everything that the bus has accepted.
"""
