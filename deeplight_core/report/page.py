"""Notebooks as pages: load the settings, show sentences and tables."""

from typing import Any

from IPython import get_ipython
from IPython.display import Markdown, display

from deeplight_core.config import Profile, load_profile
from deeplight_core.report.plots import use_style

__all__ = ["begin", "say", "show"]


def begin(profile: str, overrides: dict[str, Any] | None = None, target: str = "", transfer: str = "") -> Profile:
    """Load a page's settings, make the folder of its tables, and say which data it shows.

    For the arguments see `config.load_profile`, `Profile.for_target` and `Profile.transferred`.
    """
    if shell := get_ipython():
        shell.run_line_magic("config", 'InlineBackend.figure_formats = ["retina"]')
    use_style()
    settings = load_profile(profile, overrides).transferred(transfer).for_target(target)
    settings.folder.mkdir(parents=True, exist_ok=True)
    say(settings.provenance)
    return settings


def say(*sentences: str) -> None:
    """Show sentences (Markdown) as one paragraph; leave out empty ones, and show nothing if all are empty."""
    if any(sentences):
        display(Markdown(" ".join(filter(None, sentences))))


def show(*tables: Any) -> None:
    """Show tables (data frames or styled ones), one below the other; leave out None."""
    for table in tables:
        if table is not None:
            display(table)
