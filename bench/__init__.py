"""
Measurements against code written by hand; they are run, not installed.
"""
