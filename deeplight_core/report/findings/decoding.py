"""Sentences of the pages, made from settings and tables."""

import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.sweeps import planned

__all__ = ["fold_note", "make_command", "missing_note"]


_DATA = {"haxby": "haxby2001-vt", "haxby-slice": "haxby2001-slice", "paper": "hcp"}


def make_command(target: str, profile: str) -> str:
    """The command that makes a profile's pages."""
    data = f" DATA=/path/to/{_DATA[profile]}" if profile in _DATA else ""
    return f"make {target} PROFILE={profile}{data}"


def missing_note(profile: Profile, name: str, missing: list[str]) -> str:
    """One line of Markdown: what a page is made of, and which of its trainings are missing and how to run them."""
    n = len(planned(profile, name))
    if not missing:
        return f"All {n} trainings of this page are here." if n else "This profile has no trainings for this page."
    command = make_command({"sweep": "reproduce", "gain": "gain"}.get(name, "controls"), profile.name)
    return (
        f"**{len(missing)} of the {n} trainings of this page have not been run**; what is here is shown. `{command}` "
        f"runs the rest: {', '.join(f'`{m}`' for m in missing)}. Decoders are compared over the seeds that they share."
    )


def fold_note(profile: Profile, comparison: pd.DataFrame) -> str:
    """What cross-validation says of pre-training: a sentence for each fraction, and what to think of the other tests.

    Parameters
    ----------
    comparison : of `statistics.compare_folds`
    """
    unit = profile.data.split_unit
    said = [
        f"- {row['n_subjects']:g} {unit}s ({100 * row['fraction']:g}%): {row['difference']:+.1%} "
        f"[{row['low']:+.1%}, {row['high']:+.1%}], "
        + (
            "no variance, no test"
            if np.isnan(row["t"])
            else f"t({row['dof']:g}) = {row['t']:.2f}, p = {row['p']:.2g} (Bonferroni {row['p_bonferroni']:.2g})"
        )
        for row in comparison.to_dict("records")
    ]
    lines = "\n".join(said)
    return (
        f"**Cross-validated**: {profile.sweep.folds} folds of the {unit}s, {profile.sweep.repeats} time(s). "
        "Pre-trained against from scratch, with the corrected resampled t-test (Nadeau & Bengio 2003) over folds:\n\n"
        f"{lines}\n\nThe figures and tests below take each {unit}'s score from the fold that held it out. They count "
        f"{unit}s, whose decoders share training data, so their intervals are too narrow: the list above is the test."
    )
