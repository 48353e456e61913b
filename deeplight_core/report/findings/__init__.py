"""Sentences and tables of the pages, made from settings and results. Pure functions: they read and write no file."""

from deeplight_core.report.findings.decoding import fold_note, make_command, missing_note
from deeplight_core.report.findings.fairness import (
    best_rates,
    gain_finding,
    gain_table,
    length_finding,
    length_table,
    pace_finding,
    rates_finding,
    rates_table,
    transfer_gain,
)

__all__ = [
    "best_rates",
    "fold_note",
    "gain_finding",
    "gain_table",
    "length_finding",
    "length_table",
    "make_command",
    "missing_note",
    "pace_finding",
    "rates_finding",
    "rates_table",
    "transfer_gain",
]
