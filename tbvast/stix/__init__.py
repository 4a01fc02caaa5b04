"""
STIX documents: what they say, and which of them are accepted. Pure.
"""
