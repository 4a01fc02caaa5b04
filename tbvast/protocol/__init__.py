"""
What is said on the endpoints: bytes in, typed values out. Pure.
"""
