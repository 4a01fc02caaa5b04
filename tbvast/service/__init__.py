"""
The infrastructure of a service's process.
"""
