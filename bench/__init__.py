"""
Measurements, and faults on purpose: commands of a checkout, not of the package.
"""
