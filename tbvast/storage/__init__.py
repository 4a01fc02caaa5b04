"""
Durable files: SQLite and its guards, and worker processes that use them.
"""
