"""
The messages of the endpoints: bytes in and values out, and the reverse. Pure.
"""
