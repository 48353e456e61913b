"""Sentences about motion: how much there was, what was done about it, whether scores depend on it."""

import pandas as pd

from deeplight_core.analysis.motion import motion_correlations
from deeplight_core.config import Profile
from deeplight_core.data.store import Store
from deeplight_core.report.findings.cells import counted, listed, short_title
from deeplight_core.report.quality import motion_by_unit

__all__ = ["motion_note", "motion_score_note"]

_MOVED_MM = 0.5  # a mean displacement that studies often exclude people for


def motion_note(profile: Profile, store: Store) -> str:
    """How much people moved, whether splits differ in it, and what was censored; empty for simulated data and images.

    Where no file of confounds is known, the note says so.
    """
    if store.is_structural or profile.simulated:
        return ""
    unit, table, runs = profile.data.split_unit, motion_by_unit(store), store.runs
    if table.empty:
        return (
            "How much people moved is not known: no confounds of fMRIPrep lie beside these images (`deeplight manifest "
            "--derivatives` lists images that have them)."
        )
    fd = table["mean_fd_mm"]
    worst = table.iloc[int(fd.argmax())]
    said = [
        f"The mean framewise displacement is known for {counted(len(table), unit)}: {fd.median():.2f} mm in the median "
        f"{unit}, {worst['mean_fd_mm']:.2f} mm in {worst['unit']}, who moved most; {(fd > _MOVED_MM).sum()} moved more "
        f"than {_MOVED_MM:g} mm from one volume to the next on average."
    ]
    by_split = table.groupby("split", sort=False)["mean_fd_mm"].median()
    if len(by_split) > 1:
        said.append(f"Medians of the splits: {listed([f'{split} {mm:.2f} mm' for split, mm in by_split.items()])}.")
    unsteady = int(runs["unsteady_volumes"].fillna(0).sum())
    if not store.preprocessing.confounds.strategy:
        kept = f" Kept from before the scanner's steady state: {counted(unsteady, 'volume')}." if unsteady else ""
        said.append(
            f"Nothing was done about motion.{kept} Name strategies in `preprocessing.confounds` to regress it out."
        )
        return " ".join(said)
    censored = int(runs["censored_volumes"].fillna(0).sum())
    said.append(
        f"{censored:,} of {int(runs['n_frames'].sum()):,} volumes were censored ({unsteady} of them from before the "
        f"steady state), {runs['censored_volumes'].max():.0f} in the worst run; {runs['n_confounds'].median():.0f} "
        "regressors were taken out of the median run."
    )
    return " ".join(said)


def motion_score_note(profile: Profile, scored: pd.DataFrame) -> str:
    """The correlations of score and motion over held-out units, and what they can mean.

    Parameters
    ----------
    scored : as `analysis.motion.scores_and_motion` gives it
    """
    if profile.simulated:
        return "These data are simulated: nobody moved."
    unit = profile.data.split_unit
    found = motion_correlations(scored)
    if found["r"].isna().all():
        return (
            f"The motion of fewer than four held-out {unit}s is known, or they have the same scores: there is no "
            "correlation to report. Images of fMRIPrep have their confounds beside them."
        )
    each = [
        f"{row['r']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] for {short_title(str(row['variant']))} "
        f"(p = {row['p']:.2g}, {counted(row['n'], unit)})"
        for row in found.dropna().to_dict("records")
    ]
    sure = [row for row in found.dropna().to_dict("records") if row["p"] < 0.05]
    end = "None differs from zero; with so few, only a strong relation would be seen."
    if sure:
        better = any(row["r"] > 0 for row in sure)
        end = (
            "Those who move more are decoded better: suspect that motion itself is decoded, and regress it out."
            if better
            else "Those who move more are decoded worse: motion disturbs the decoder."
        )
    return f"Spearman's correlation of score and mean framewise displacement: {listed(each)}. {end}"
