"""`blocklora`, the command line. Thin: every command calls one function of another room.

Knows all of them.
"""
