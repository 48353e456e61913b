"""Sentences and tables of the pages about autoencoders (Atanaszov & Ritter 2019)."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.report.findings.cells import interval, listed, number, table

__all__ = [
    "API",
    "Penalty",
    "api_table",
    "architectures_note",
    "architectures_table",
    "autoencoder_speed",
    "codes_note",
    "codes_table",
    "dead_codes_note",
    "difference_of_errors",
    "equal_note",
    "kl_note",
    "more_weights",
    "penalty_of_codes",
    "people_table",
    "reference_note",
    "separation_gain",
    "separation_note",
    "trained_note",
    "widest",
]

FEWER = 0.6  # "around 60% fewer parameters" (section 2.2.2)
_SILENT = 1e-6  # a unit of the code whose activation never exceeds this
_WAYS = {"plain": "plain PyTorch, float32", "ours": "this package, float32", "ours-bfloat16": "this package, bfloat16"}
_UNUSED_NATS = 0.01  # KL divergence of a unit of a variational code that says nothing

API = (
    (
        "MRIDataset (paths, labels)",
        "the manifest: one row per image",
        "deeplight manifest --bids DATA --anat T1w -o t1.csv",
    ),
    (
        "DataBunch (CSV → datasets and loaders)",
        "the volume store",
        "deeplight prepare t1.csv --store t1.store --keep all",
    ),
    (
        "DataBunch: balanced split",
        "classes in equal proportions",
        "deeplight manifest … --label diagnosis --stratify diagnosis",
    ),
    (
        "DataBunch: grouped split",
        "always: people, and families, are never divided",
        "deeplight manifest … --subjects participants.tsv",
    ),
    ("DataBunch: mask", "masks of the manifest; one common mask", "preprocessing.mask_coverage"),
    ("DataBunch: zoom (z_factor)", "zoom to a shape, or resample to a grid", "deeplight prepare … --zoom-to 54 64 54"),
    ("DataBunch: transforms (noise)", "noise on the input, in training only", "routes.autoencoder.head.noise"),
    ("DataBunch: cache", "the store is one, memory-mapped", "training.loader.Volumes"),
    ("DataBunch.normalize", "z-scores over the training images", "preprocessing.structural.z_score"),
    ("DataBunch.build_dataloaders", "batches as a function of seed and step", "training.loader.BatchOrder"),
    ("DataBunch.show_sample", "the data page", "notebooks/01_data.ipynb"),
    ("DataBunch.print_stats", "the table of people and images below", "report.findings.people_table"),
    ("DataBunch.save, load", "the store on disk, checked by hash", "data.store.open_store"),
    ("number of training samples", "fractions of the people", "deeplight finetune … --fraction 0.3"),
    ("labels_to_keep", "the states of the target", "data.target"),
    ("get_adni, get_ppmi, get_idss", "simulated stand-ins; your own by a manifest", "profiles/autoencoder.yaml"),
    (
        "Learner (classifier, autoencoder, mixed)",
        "heads: classes, reconstruction, with auxiliary targets",
        "models.HEADS",
    ),
    ("Learner.fit(epochs, lr, wd, l1_reg, early stopping)", "settings of a training", "routes.autoencoder.pretraining"),
    (
        "Learner.predict (and confusion matrix)",
        "predictions of every held-out image",
        "deeplight evaluate TRAINING PROFILE",
    ),
    ("Learner.encode_data", "features of an encoder", "codes.codes"),
    ("Learner.plot_history", "learning curves", "report.plots.error_curves"),
    ("Learner.plot_TSNE, plot_PCA", "projections below, by scikit-learn", "report.plots.code_projections"),
    ("Learner.plot_bottleneck_histogram", "the histogram below", "report.plots.code_histograms"),
    ("Learner.freeze_encoder, unfreeze_encoder", "groups of layers with epochs and rates", "finetuning.groups"),
    ("Learner.reset_model", "another seed, or another folder", "deeplight finetune … --seed 2"),
    (
        "Learner.save, load, from_pretrained",
        "safetensors and JSON in every training's folder",
        "training.checkpoint.load_model",
    ),
    ("Learner: del", "processes end with their training", "deeplight sweep autoencoder"),
    ("create_autoencoder", "a pre-training", "deeplight pretrain autoencoder --route autoencoder"),
    ("create_classifier", "a decoder from scratch", "deeplight finetune … --variant cae-scratch"),
    (
        "create_classifier_from_encoder",
        "a decoder that starts from a pre-training",
        "deeplight finetune … --variant cae",
    ),
    ("ConvAutoEncoder", "encoder `cae`, head `reconstruction`", "models.autoencoder.ConvEncoder"),
    ("StridedConvAutoEncoder", "encoder `srcae`, head `reconstruction`", "models.autoencoder.ResidualEncoder"),
    ("EncoderClassifier", "encoder `cae`, head `classes` with a hidden layer", "finetuning.head.hidden"),
)  # fmt: skip
"""The report's library (section 4) beside this one: item, what does it here, the command, setting or function."""


def api_table() -> Styler:
    """The report's library, item by item, beside this one."""
    theirs, here, how = zip(*API, strict=True)
    columns = {"in the report": list(theirs), "here": list(here), "command, setting or function": list(how)}
    return table(columns, wrapped=True)


# ---- people


def people_table(index: pd.DataFrame, label: str) -> Styler:
    """Numbers of images and of people in each split, by modality and class.

    Parameters
    ----------
    index : a store's index; one row per image
    label : the column of classes
    """
    counted_by = index.groupby(["task", label, "split"])
    counts = pd.DataFrame({"images": counted_by.size(), "people": counted_by["subject"].nunique()}).reset_index()
    names = {"task": "images", label: label, "split": "split", "n": "number of images", "people": "people"}
    rows = counts.rename(columns={"images": "n"}).astype(str)
    return table({title: rows[column].tolist() for column, title in names.items()})


# ---- architectures


def architectures_table(sizes_of: dict[str, tuple[int, int]]) -> Styler:
    """Numbers of weights of autoencoders.

    Parameters
    ----------
    sizes_of : title → weights of the encoder, and of encoder and decoder
    """
    encoders, wholes = zip(*sizes_of.values(), strict=True)
    return table(
        {
            "autoencoder": list(sizes_of),
            "weights of the encoder": [f"{n:,}" for n in encoders],
            "with its decoder": [f"{n:,}" for n in wholes],
        }
    )


def more_weights(sizes_of: dict[str, tuple[int, int]]) -> float:
    """Share of weights that the residual autoencoder has more than the convolutional one (see `architectures_table`).

    Negative if it has fewer; NaN if one of them is missing.
    """
    if len(sizes_of) < 2:
        return np.nan
    (_, convolutional), (_, residual) = sizes_of.values()
    return residual / convolutional - 1


def architectures_note(sizes_of: dict[str, tuple[int, int]]) -> str:
    """The residual autoencoder's size, as the report states it and as its code has it (see `architectures_table`)."""
    if len(sizes_of) < 2:
        return ""
    (_, convolutional), (_, residual) = sizes_of.values()
    return (
        f"The report says that the strided residual autoencoder has around {FEWER:.0%} fewer weights. In its code it "
        f"has {residual:,}, {more_weights(sizes_of):+.0%} against the convolutional one's {convolutional:,}."
    )


# ---- reconstructions


def reference_note(title: str, errors: pd.DataFrame) -> str:
    """An autoencoder's held-out error beside the mean image's and PCA's (`codes.reference_errors`)."""
    means = errors[["autoencoder", "mean", "pca"]].mean()
    n = int(errors["n_components"].iloc[0])
    verdict = "below" if means["autoencoder"] < means["mean"] else "**not below**"
    against = "less than" if means["autoencoder"] < means["pca"] else "more than"
    return (
        f"Mean squared error per voxel of held-out people, {title}: {number(means['autoencoder'], '.3g')}, which is "
        f"{verdict} that of the mean training image ({number(means['mean'], '.3g')}) and {against} that of PCA with "
        f"{n} components ({number(means['pca'], '.3g')}), as many as the code has units or the training images allow."
    )


def difference_of_errors(errors: dict[str, pd.DataFrame]) -> tuple[float, float, float]:
    """The mean difference of two autoencoders' errors, the first minus the second, with its 95% interval over people.

    Parameters
    ----------
    errors : title → `subject` and `autoencoder`, as `codes.reference_errors` gives it; two of the same people
    """
    a, b = (rows.set_index("subject")["autoencoder"] for rows in errors.values())
    difference = (a - b).to_numpy()
    return float(difference.mean()), *statistics.t_interval(difference, 0.95)


def equal_note(errors: dict[str, pd.DataFrame]) -> str:
    """Whether two autoencoders "performed equally well" (see `difference_of_errors`)."""
    if len(errors) < 2:
        return ""
    one, other = errors
    mean, low, high = difference_of_errors(errors)
    verdict = "no difference can be shown" if low <= 0 <= high else f"{one if mean < 0 else other} is better"
    return (
        f'The report says that the two "performed equally well". Here the difference of their errors, {one} − {other}, '
        f"is {interval(mean, low, high, '+.2g')} over {len(errors[one])} held-out people: **{verdict}**."
    )


# ---- codes


def code_of(name: str) -> tuple[int, float]:
    """Width in channels and weight of the L1 penalty of a change's name (`sweeps.changes`)."""
    width, penalty = name.removeprefix("code").split("-l1-")
    return int(width), float(penalty)


def codes_table(codes: dict[str, np.ndarray], errors: dict[str, float]) -> Styler:
    """Codes of several widths and penalties: units, silent ones, held-out error.

    Parameters
    ----------
    codes : name of a change → (N, U) features of held-out images
    errors : name → mean held-out error
    """
    named = {name: code_of(name) for name in codes}
    silent = [float((np.abs(features) <= _SILENT).all(axis=0).mean()) for features in codes.values()]
    return table(
        {
            "channels": [str(named[name][0]) for name in codes],
            "penalty": [f"{named[name][1]:g}" for name in codes],
            "units": [str(features.shape[1]) for features in codes.values()],
            "silent units": [f"{share:.0%}" for share in silent],
            "mean activation": [number(float(np.abs(features).mean()), ".3g") for features in codes.values()],
            "held-out error": [number(errors[name], ".4f") for name in codes],
        }
    )


def widest(codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The widest code without and with the largest penalty, by title."""
    width = max(code_of(name)[0] for name in codes)
    named = {code_of(name)[1]: features for name, features in codes.items() if code_of(name)[0] == width}
    ends = dict.fromkeys((min(named), max(named)))
    return {f"{width} channels, {f'penalty {p:g}' if p else 'no penalty'}": named[p] for p in ends}


class Penalty(NamedTuple):
    """What an L1 penalty does to codes.

    silent_with, silent_without : shares of silent units
    gain : width in channels → how much the best penalty lowers the held-out error
    room : whether the code with the lowest error of all is a wide one with a penalty
    """

    silent_with: float
    silent_without: float
    gain: dict[int, float]
    room: bool


def penalty_of_codes(codes: dict[str, np.ndarray], errors: dict[str, float]) -> Penalty | None:
    """What the penalty does to the narrowest and the widest code (see `codes_table`).

    None without two widths, all with and without a penalty.
    """
    named = {name: code_of(name) for name in codes}
    widths = sorted({width for width, _ in named.values()})

    def of(width: int, penalised: bool) -> list[str]:
        return [name for name, (w, penalty) in named.items() if w == width and (penalty > 0) == penalised]

    def silent(names: list[str]) -> float:
        return float(np.mean([(np.abs(codes[name]) <= _SILENT).all(axis=0).mean() for name in names]))

    if len(widths) < 2 or not all(of(width, penalised) for width in widths for penalised in (False, True)):
        return None
    narrow, wide = widths[0], widths[-1]
    plain, penalised = of(narrow, False) + of(wide, False), of(narrow, True) + of(wide, True)
    best = {width: min(of(width, True), key=errors.__getitem__) for width in (narrow, wide)}
    gain = {width: errors[of(width, False)[0]] - errors[best[width]] for width in (narrow, wide)}
    room = errors[best[wide]] < min(errors[name] for name in codes if name != best[wide])
    return Penalty(silent(penalised), silent(plain), gain, room)


def codes_note(codes: dict[str, np.ndarray], errors: dict[str, float]) -> str:
    """The report's claims on L1: a sparser code, and room for a larger one (see `codes_table`)."""
    found = penalty_of_codes(codes, errors)
    if found is None:
        return "The report's claims need two widths, each with and without a penalty."
    sparser = found.silent_with > found.silent_without
    (narrow, little), (wide, much) = found.gain.items()
    return (
        f"With the penalty {found.silent_with:.0%} of the units are silent, without it {found.silent_without:.0%}: the "
        f"code {'becomes' if sparser else '**does not become**'} sparser. The best penalty changes the held-out error "
        f"by {-little:+.4f} with {narrow} channels and by {-much:+.4f} with {wide}; the report's claim that a "
        f"penalty makes room for a larger code {'holds here' if found.room else '**does not hold here**'}."
    )


def kl_note(kl_of_units: np.ndarray) -> str:
    """Whether a variational code is used, or its posterior has collapsed.

    Parameters
    ----------
    kl_of_units : (U,) nats
    """
    used = float((kl_of_units > _UNUSED_NATS).mean())
    said = f"Of the variational code's {len(kl_of_units)} units {used:.0%} are used (more than {_UNUSED_NATS} nats)."
    return said + (" **Its posterior has collapsed: the code says nothing.**" if used == 0 else "")


def separation_gain(one: pd.DataFrame, other: pd.DataFrame) -> tuple[float, float, float]:
    """How much better the second code separates held-out people than the first, with its 95% interval over them.

    Parameters
    ----------
    one, other : as `codes.separation` gives it, of the same images
    """
    new = one["held_out"].to_numpy()
    gain = (other["silhouette"] - one["silhouette"])[new].groupby(one["unit"][new]).mean().to_numpy()
    return float(gain.mean()), *statistics.t_interval(gain, 0.95)


def separation_note(separations: dict[str, pd.DataFrame], label: str) -> str:
    """How well codes separate classes, in training and held out.

    Parameters
    ----------
    separations : title → as `codes.separation` gives it
    """
    means = {t: rows.groupby("held_out")["silhouette"].mean() for t, rows in separations.items()}
    said = [f"{title} {number(of[False], '+.2f')} and {number(of[True], '+.2f')}" for title, of in means.items()]
    return (
        f"Separation of *{label}* in the whole code (silhouette: 1 is apart, 0 is mixed) among images trained on and "
        f"among held-out ones: {'; '.join(said)}."
        if said
        else ""
    )


def dead_codes_note(codes: dict[str, np.ndarray]) -> str:
    """Which codes (N, F), by their titles, are the same for all images; nothing if none is."""
    dead = [title for title, code in codes.items() if (np.ptp(code, axis=0) == 0).all()]
    return f"**The code of {listed(dead)} is the same for all images: it says nothing about them.**" if dead else ""


def trained_note(finished: dict[str, bool]) -> str:
    """Which of the planned pre-trainings are missing; nothing if none is."""
    missing = [name for name, done in finished.items() if not done]
    have = "has" if len(missing) == 1 else "have"
    said = f"**{len(missing)} of {len(finished)} pre-trainings {have} not been run**: {listed(missing)}."
    return said if missing else ""


def autoencoder_speed(results: list[dict[str, Any]]) -> Styler | None:
    """The train step of the convolutional autoencoder beside a plain PyTorch loop: time and memory; None if unmeasured.

    Parameters
    ----------
    results : of `benchmarks/autoencoder.py`, one for each machine
    """
    rows: list[dict[str, str]] = []
    for result in results:
        for grid in result["grids"]:
            for way, measured in grid["ways"].items():
                memory = measured["peak_gpu_mb"] or measured["peak_mb"] - measured["start_mb"]
                ratio = grid["times_as_fast_as_plain"].get(way)
                rows.append(
                    {
                        "device": result["device"],
                        "grid": " × ".join(map(str, grid["shape"])),
                        "images per step": str(grid["batch_size"]),
                        "way": _WAYS[way],
                        "ms per image": f"{grid['median_ms_per_image'][way]:.0f}",
                        "times as fast": f"{ratio:.1f}" if ratio else "–",
                        "memory": f"{memory / 1e3:.1f} GB",
                    }
                )
    return table({title: [row[title] for row in rows] for title in rows[0]}) if rows else None
