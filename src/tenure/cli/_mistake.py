"""Errors that the user of the command can correct."""

from __future__ import annotations


class Mistake(Exception):
    """The command cannot begin; the message, one line, says what to do."""
