"""
Code shared by the demo, the tests and the benches; not installed.
"""
