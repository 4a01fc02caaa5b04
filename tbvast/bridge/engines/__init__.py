"""
The engines a bridge can drive, each behind L{tbvast.interfaces.IEngine}.
"""
