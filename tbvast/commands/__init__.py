"""
What the C{tbvast} command does, one module for each of its subcommands.
"""
