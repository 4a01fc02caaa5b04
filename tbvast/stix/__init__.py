"""
STIX documents: their meaning, and the rules of their admission. Pure.
"""
