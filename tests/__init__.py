"""
The tests; those that need real components are in L{tests.functional}.
"""
