"""Parts of tables and sentences: numbers, intervals, sizes, names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.config import Profile
from deeplight_core.routes import ROUTES, VARIANTS

__all__ = [
    "change",
    "counted",
    "fine_tuned",
    "interval",
    "listed",
    "number",
    "short_title",
    "sizes",
    "span",
    "starred",
    "table",
    "trained_on",
]


def table(columns: dict[str, list[Any]], wrapped: bool = False) -> Styler:
    """A table of texts without row labels; in a wide one, long texts may go on in a second line (`wrapped`).

    Names that come from data are no markup.
    """
    made = pd.DataFrame(columns).style.hide(axis="index").format(escape="html").format_index(escape="html", axis=1)
    return made.set_table_attributes('class="wrapped"') if wrapped else made


def sizes(profile: Profile, rows: pd.DataFrame) -> dict[str, list[str]]:
    """A table's column of sizes: the number of units, and their share of all."""
    pairs = zip(rows["n_subjects"], rows["fraction"], strict=True)
    return {f"{profile.data.split_unit}s": [f"{n} ({100 * fraction:g}%)" for n, fraction in pairs]}


def short_title(variant: str) -> str:
    """A variant's title without the name DeepLight; any other name is its own."""
    return VARIANTS[variant].title.removeprefix("DeepLight, ") if variant in VARIANTS else variant


def trained_on(variant: str) -> str:
    """What a variant's encoder was pre-trained on."""
    return "random weights" if VARIANTS[variant].start == "random" else ROUTES[VARIANTS[variant].route].title


def fine_tuned(variants: Sequence[str]) -> list[str]:
    """Networks that start from a pre-training."""
    return [v for v in variants if VARIANTS[v].learner == "deep" and VARIANTS[v].start == "checkpoint"]


def counted(n: float, unit: str) -> str:
    """A number of units, as in "1 subject" and "3 subjects"."""
    return f"{n:.0f} {unit}{'' if n == 1 else 's'}"


def listed(names: list[str]) -> str:
    """Names as in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def number(value: float, form: str = ".2g") -> str:
    """A number, or a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:{form}}"


def starred(p: float, significant: bool) -> str:
    """A p value, with a star where it is significant."""
    return f"{number(p)} ★" if significant else number(p)


def interval(mean: float, low: float, high: float, form: str = ".1%") -> str:
    """A share with its interval, if it has one."""
    return f"{mean:{form}}" if np.isnan(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def change(row: Any) -> str:
    """The `difference` of a row of tests with its interval, `low` to `high`."""
    return interval(row["difference"], row["low"], row["high"], "+.1%")


def span(low: float, high: float) -> str:
    """An interval of plain numbers, or a dash where there is none."""
    return "–" if np.isnan(low) else f"[{low:.2f}, {high:.2f}]"
