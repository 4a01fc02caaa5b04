"""
The command C{tbvast}.
"""
