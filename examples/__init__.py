"""
Programs that use the library; they are run, not installed.
"""
