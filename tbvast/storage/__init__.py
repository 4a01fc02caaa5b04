"""
The files that must survive a service: SQLite, and its guards.
"""
