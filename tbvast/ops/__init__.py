"""
What both services need to be run: logs, state directories, start and stop.
"""
