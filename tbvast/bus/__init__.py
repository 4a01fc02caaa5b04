"""
The bus: what the plugin is made of.
"""
