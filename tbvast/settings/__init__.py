"""
The configuration file and the command line, as typed and validated settings.
"""
