"""
The journal: everything that the bus has accepted, in a file.
"""
