"""
What is said on the manage, pub and sub endpoints: bytes in, typed values out.
"""
