"""
Files that keep what must survive a service: SQLite, and what guards it.
"""
