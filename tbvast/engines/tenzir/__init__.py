"""
The driver of Tenzir.
"""
