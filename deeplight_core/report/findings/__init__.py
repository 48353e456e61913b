"""Sentences and tables of the pages, made from settings and results. Pure functions: they read and write no file."""

from deeplight_core.report.findings.decoding import fold_note, make_command, missing_note

__all__ = ["fold_note", "make_command", "missing_note"]
