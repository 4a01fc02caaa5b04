"""
How a process lives.
"""
