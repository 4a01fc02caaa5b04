"""
The bus plugin.
"""
