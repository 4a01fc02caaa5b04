"""
Tenzir.
"""
