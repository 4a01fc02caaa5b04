"""
What demo, tests and benches share; not installed.
"""
