"""The suite around the library: notebooks, their execution, the report, and what the engine needs.

Knows all but the command line.
"""
