"""
The protocols of the endpoints: bytes in, typed values out. No input or output.
"""
