"""Sentences and tables about the data: who, what was kept, what was left out, and quality."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from pandas.io.formats.style import Styler

from deeplight_core.config import Profile
from deeplight_core.data.labels import losses
from deeplight_core.data.manifest import is_structural, unit_names
from deeplight_core.data.store import Store
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.report import paper
from deeplight_core.report.findings.cells import counted, listed
from deeplight_core.report.quality import Design, trend_share

__all__ = [
    "activation_note",
    "cleaning_note",
    "counts_table",
    "coverage_note",
    "design_note",
    "drift_note",
    "kept_note",
    "left_out_note",
    "left_out_table",
    "mask_note",
    "repetition_note",
    "runs_table",
    "seconds_note",
    "seconds_table",
    "states_note",
    "tsnr_note",
    "worst_runs_note",
    "worst_runs_table",
]

_COUNTS = {
    "n_frames": "volumes acquired",
    "n_kept": "volumes kept",
    "volumes_in_no_block": "volumes in no block (rest, cues, first seconds of a block)",
    "volumes_in_two_blocks": "volumes in two blocks",
    "images_without_state": "images whose label is no state",
    "blocks_past_the_end": "blocks that end after their run (with the lag)",
    "blocks_without_volumes": "blocks without any volume",
    "events_without_onset": "events without an onset (n/a)",
    "constant_voxels": "constant voxels, set to zero (summed over runs)",
    "trials": "trials",
    "trials_nearest": "trials without a volume in their window, which take the nearest",
    "trials_of_two_states": "trials left out: another state begins with them",
    "trials_outside": "trials left out: window or response outside the run, or censored",
    "trials_censored": "trials left out: all their volumes are censored",
    "trials_inseparable": "trials left out: their beta is not separable from the others'",
    "unsteady_volumes": "volumes before the scanner's steady state",
    "censored_volumes": "volumes censored for motion, or before the steady state",
    "labelled_volumes_censored": "volumes with a state that were censored",
}
_QUALITY = {
    "run": "run",
    "split": "split",
    "median_tsnr": "median tSNR",
    "mask_overlap": "share of the common mask covered",
    "constant_voxels": "constant voxels",
    "n_kept": "volumes kept",
}


# ---- who and what


def runs_table(manifest: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Units, runs and volumes of every task (rows) and split (columns)."""
    unit = profile.data.split_unit
    table = manifest.assign(unit=unit_names(manifest, unit)).groupby(["task", "split"])
    counts: Any = table.agg(
        **{f"{unit}s": ("unit", "nunique"), "runs": ("image", "size"), "volumes": ("n_volumes", "sum")}
    )
    return counts.unstack("split", fill_value=0).rename_axis(columns=[None, None], index=None)


def repetition_note(manifest: pd.DataFrame) -> str:
    """The runs' repetition time; empty for structural images."""
    times = sorted(manifest.loc[~is_structural(manifest), "tr_s"].unique())
    return f"The repetition time is {' or '.join(f'{t:g}' for t in times)} s." if times else ""


def cleaning_note(settings: PreprocessingSettings, manifest: pd.DataFrame) -> str:
    """The cleaning of every voxel, and the shift of labels."""
    if is_structural(manifest).all():
        registered = ", registered to MNI152 (affine)" if settings.structural.registration == "affine" else ""
        return f"These are structural images: each is masked{registered} and scaled to values from 0 to 1."
    strategy, kind = settings.confounds.strategy, settings.example.kind
    regressed = [name for name in strategy if name not in ("scrub", "non_steady_state")]
    in_model = kind in ("lsa", "lss")
    steps = {
        f"Gaussian smoothing ({settings.fwhm_mm} mm FWHM)": settings.fwhm_mm,
        "linear detrending": settings.detrend and not in_model,
        f"a Butterworth high-pass filter ({settings.high_pass_hz} Hz)": settings.high_pass_hz and not in_model,
        f"regression of confounds ({', '.join(regressed)})": regressed and not in_model,
        "censoring of volumes" + (" for motion" if "scrub" in strategy else " before the steady state"): strategy,
        "z-scores": not in_model,
    }
    return (
        f"Cleaning here: {', '.join(step for step, asked in steps.items() if asked) or 'none'}. "
        f"{_example(settings, regressed)}"
    )


def _example(settings: PreprocessingSettings, regressed: Sequence[str]) -> str:
    """What an example of a run is, and how it is made."""
    example = settings.example
    if example.kind == "volume":
        return f"Labels are shifted by {settings.lag_s:g} s for the haemodynamic lag."
    if example.kind == "window":
        first_s, last_s = example.window_s
        return (
            f"An example is a **trial**: the mean of its volumes from {first_s:g} to {last_s:g} s after its onset or, "
            "if there is none, the volume nearest to the middle."
        )
    drifts = ["a straight line"] if settings.detrend else []
    if settings.high_pass_hz is not None:
        drifts = [f"cosines up to {settings.high_pass_hz:.4g} Hz"]
    models = {
        "lsa": "least squares all: one model of all trials of a run",
        "lss": "least squares separate (Mumford et al. 2012): for each trial a model of it and of all others together",
    }
    confounds = [f"confounds ({', '.join(regressed)})"] if regressed else []
    return (
        f"An example is a **trial**: its beta by {models[example.kind]}. The haemodynamic response is nilearn's "
        f"*{example.hrf}*; the model also has {listed([*drifts, *confounds, 'a constant'])}. Betas are in SDs of what "
        "these leave of a voxel's series, and those of a run are divided by one number, so that noise alone has an SD "
        "of about 1."
    )


# ---- what was kept, what was left out


def counts_table(runs: pd.DataFrame) -> Styler:
    """Volumes, blocks and voxels that were kept or left out, summed over a store's runs."""
    there = {column: name for column, name in _COUNTS.items() if column in runs}
    there |= {"n_kept": "trials kept"} if "trials" in runs else {}
    return runs[list(there)].sum().rename(there).astype(int).to_frame("number").style.format(thousands=",")


def kept_note(store: Store) -> str:
    """The number of volumes or trials kept, the events not used, and the effects of resampling and rounding."""
    runs, settings = store.runs, store.preprocessing
    trials = store.holds == "trials"
    there, kept = int(runs["trials" if trials else "n_frames"].sum()), int(runs["n_kept"].sum())
    rule = ", each in exactly one block" if settings.keep == "labelled" and not store.is_structural else ""
    sentences = [
        f"Kept: **{kept:,}** of {there:,} {store.holds} ({kept / there:.0%}){'' if trials else rule}. They have "
        f"{store.info['n_voxels']:,} voxels each, on a grid of {' × '.join(map(str, store.shape))}.",
        f"Events ignored on purpose: {_listed(runs['ignored_events'])}. "
        f"Events with unknown names: {_listed(runs['unknown_events'])}.",
    ]
    if lost := losses(store.labels()):
        sentences.append(f"**Some states lose many events:** {'; '.join(lost)}.")
    if runs["resampled"].any() and (named := settings.named_grid):
        sentences.append(
            f"**{runs['resampled'].sum()} of {len(runs)} runs had another grid** (orientations "
            f"{', '.join(sorted(runs['orientation'].unique()))}) and had to be resampled: `preprocessing.{named}` is "
            f"`{getattr(settings, named)}`."
        )
    if settings.storage == "int8":
        sentences.append(
            f"Volumes are stored as int8. Rounding moves a value by at most {runs['rounding_largest'].max():.3f} SD; "
            f"in the worst run by {runs['rounding_rms'].max():.3f} SD (root mean square)."
        )
    return " ".join(sentences)


def _listed(cells: pd.Series) -> str:
    """The names in cells of comma-separated names, each once."""
    names = sorted({name for cell in cells for name in cell.split(", ") if name})
    return ", ".join(f"`{name}`" for name in names) or "none"


def left_out_table(left_out: pd.DataFrame) -> Styler | None:
    """How many entries the scan left out for each reason; None if there are none.

    Parameters
    ----------
    left_out : `path, reason`, as `manifest.read_left_out` gives it
    """
    if left_out.empty:
        return None
    reasons = left_out.groupby("reason")["path"].agg(["size", "first"]).sort_values("size", ascending=False)
    return reasons.rename(columns={"size": "number", "first": "for example"}).rename_axis(index=None).style


def left_out_note(left_out: pd.DataFrame, manifest_path: Path) -> str:
    """How many entries the scan left out, and where they are listed."""
    if left_out.empty:
        return "The scan of this dataset left nothing out, or the manifest was not made by a scan."
    entries = f"{len(left_out):,} {'entry' if len(left_out) == 1 else 'entries'}"
    return f"{entries} in all, each with its reason in `{manifest_path.stem}.left-out.csv` beside the manifest."


# ---- beside the paper


def _seconds(profile: Profile, store: Store) -> pd.DataFrame | None:
    if profile.data.layout != "hcp" or store.holds == "trials":
        return None
    return paper.table1(store.index[store.index["state"] != ""], store.info["tr_s"])


def seconds_table(profile: Profile, store: Store) -> Styler | None:
    """Table 1 in the paper, by the label rule and in this run; None unless these are volumes in HCP's layout."""
    durations = _seconds(profile, store)
    if durations is None:
        return None
    durations = durations.drop(columns="why")
    return durations.style.format(dict.fromkeys(durations.columns.drop("formula"), "{:,.0f}"), na_rep="–")


def seconds_note(profile: Profile, store: Store) -> str:
    """The totals of Table 1."""
    durations = _seconds(profile, store)
    if durations is None:
        these = "Examples here are trials" if profile.data.layout == "hcp" else "These are not the paper's tasks"
        return f"{these}: Table 1 has no counterpart here."
    total = durations.iloc[-1]
    return (
        f"The paper counts {total['paper']:,.0f} s in all, and the label rule keeps {total['label rule']:,.0f} s; "
        f"a {profile.data.split_unit} of this run has {total['this run']:,.0f} s."
        + (
            " The page *Paper and this run, side by side* explains the differences."
            if profile.data.states("source")
            else ""
        )
    )


# ---- quality


def mask_note(store: Store) -> str:
    """How large the mask is, and how much of it is constant in the worst run."""
    n_voxels = store.info["n_voxels"]
    litres = n_voxels * voxel_sizes(store.affine).prod() / 1e6
    text = f"The mask holds {n_voxels:,} voxels ({litres:.2f} litres)."
    if "constant_voxels" not in store.runs:
        return text
    return (
        f"{text} In the worst run {store.runs['constant_voxels'].max() / n_voxels:.1%} of them are constant: outside "
        "that subject's own mask, or outside the field of view."
    )


def coverage_note(store: Store, shares: np.ndarray) -> str:
    """How well the runs' own masks cover the common mask.

    Parameters
    ----------
    shares : (X, Y, Z) share of runs, as `Store.coverage` gives it
    """
    worst = store.runs.iloc[store.runs["mask_overlap"].argmin()]
    return (
        f"A voxel is kept if at least {store.preprocessing.mask_coverage:.0%} of the runs' masks hold it; "
        f"{(shares[store.mask] == 1).mean():.1%} of the kept voxels lie in all of them. The mask of `{worst['run']}` "
        f"covers the least of the common mask: {worst['mask_overlap']:.1%}."
    )


def tsnr_note(tsnr: np.ndarray) -> str:
    """The temporal signal-to-noise ratio of the median voxel, and of the poorest.

    Parameters
    ----------
    tsnr : (V,) of every voxel
    """
    low, median = np.percentile(tsnr, [5, 50])
    return f"The median voxel has a ratio of {median:.0f}; one voxel in twenty lies below {low:.0f}."


def worst_runs_table(runs: pd.DataFrame, n: int = 10) -> Styler | None:
    """The n runs with the lowest temporal signal-to-noise ratio; None for structural images, which have none."""
    if "median_tsnr" not in runs:
        return None
    names = _QUALITY | ({"n_kept": "trials kept"} if "trials" in runs else {})
    table = runs.sort_values("median_tsnr")[list(names)].head(n).rename(columns=names)
    formats: dict[Any, Any] = {_QUALITY["median_tsnr"]: "{:.0f}", _QUALITY["mask_overlap"]: "{:.1%}"}
    return table.style.hide(axis="index").format(formats).set_table_attributes('class="wrapped"')


def worst_runs_note(runs: pd.DataFrame) -> str:
    """The median run's signal-to-noise ratio, and the lowest; empty for structural images, which have none."""
    if "median_tsnr" not in runs:
        return ""
    ratios = runs["median_tsnr"]
    return (
        f"The median run has a ratio of {ratios.median():.0f}; the lowest is {ratios.min():.0f} "
        f"({ratios.min() / ratios.median():.0%} of it)."
    )


def design_note(found: Mapping[str, Design]) -> str:
    """Numbers of volumes with a state, and of blocks without volumes, or of trials; empty if there are no blocks."""
    if not any(len(design.blocks) for design in found.values()):
        return ""
    if all(design.of_trials for design in found.values()):
        each = [f"{task} {len(d.labelled_s)} of {len(d.labelled_s) + d.n_empty}" for task, d in found.items()]
        return f"Trials that are examples: {', '.join(each)}."
    labelled = ", ".join(f"{task} {len(d.labelled_s)} of {d.n_volumes}" for task, d in found.items())
    empty = [f"{counted(d.n_empty, 'block')} of {task}" for task, d in found.items() if d.n_empty]
    end = f"Without any volume: {' and '.join(empty)}." if empty else "Every block has volumes."
    return f"Volumes with a state: {labelled}. {end}"


def states_note(index: pd.DataFrame, what: str = "volumes") -> str:
    """The rarest and the most frequent state of the training data; empty if no volume has a state.

    Parameters
    ----------
    what : what a row of the index is (`Store.holds`)
    """
    trained_on = index[(index["split"] == "train") & (index["state"] != "")]
    counts = (
        trained_on.groupby(["task", "state"]).size().sort_values(kind="stable").reset_index(name="n").to_dict("records")
    )
    if not counts:
        return ""
    rare, frequent = (f"*{row['state']}* ({row['task']}) with {row['n']:,}" for row in (counts[0], counts[-1]))
    return f"The rarest state of the training data is {rare} {what}, the most frequent one {frequent}."


def drift_note(series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """How much of the variance a straight line explains before and after cleaning; empty without runs.

    Parameters
    ----------
    series : run → its series (T, V) before and after cleaning
    """
    if not series:
        return ""
    before, after = (max(trend_share(stages[i]) for stages in series.values()) for i in (0, 1))
    return (
        f"In these runs a straight line explains up to {before:.1%} of the median voxel's variance before cleaning and "
        f"{after:.1%} after it."
    )


def activation_note(maps: Mapping[str, Any], planted: Mapping[str, Any], mask: np.ndarray) -> str:
    """How well the states' maps agree with the planted ones or, where the truth is unknown, how strong they are.

    Parameters
    ----------
    maps, planted : state → NIfTI image; `planted` is empty for real data
    mask : (X, Y, Z) bool; the voxels that count
    """
    if not maps:
        return ""
    inside = {state: image.get_fdata()[mask] for state, image in maps.items()}
    if planted:
        agreement = [
            f"{np.corrcoef(values, planted[state].get_fdata()[mask])[0, 1]:.2f} (*{state}*)"
            for state, values in inside.items()
        ]
        return (
            "The data show the planted activation: their maps correlate with the ground truth at "
            f"{', '.join(agreement)}."
        )
    peaks = {state: np.abs(values).max() for state, values in inside.items()}
    strongest = max(peaks, key=peaks.__getitem__)
    return (
        f"The strongest difference in a single voxel is {peaks[strongest]:.2f} SD, for *{strongest}*. "
        "There is no ground truth to compare it with."
    )
