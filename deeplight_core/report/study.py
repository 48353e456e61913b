"""A study's report: what finished trainings found, as one HTML document that can be sent to others.

Reads training folders, and where they are at hand the store that they learnt from and a folder of explanations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from statsmodels.stats.proportion import proportion_confint

from deeplight_core.analysis import scores, statistics
from deeplight_core.analysis.localisation import PLACES
from deeplight_core.analysis.measures import MEASURES
from deeplight_core.config import Profile
from deeplight_core.data.store import open_store
from deeplight_core.report import plots
from deeplight_core.report.html import Part, document
from deeplight_core.report.study_numbers import PERMUTATIONS, number_parts, number_sentence
from deeplight_core.routes import ROUTES, VARIANTS
from deeplight_core.training.checkpoint import read_record

__all__ = ["study_page", "subject_accuracies"]

_WHERE = ["subject", "session", "task", "run"]
_TITLES = {  # of what a decoder's route is after
    "Thomas, Müller & Samek (2019)": "Deep transfer learning for whole-brain fMRI analyses.",
    "Atanaszov & Ritter (2019)": "Transfer learning for MRI (report).",
    "Shi et al. (2023)": "Self-supervised pretraining improves the performance of classification of task functional "
    "magnetic resonance imaging.",
    "Wang et al. (2020)": "Decoding and mapping task states of the human brain via deep learning.",
    "Malik & Bzdok (2022)": "From YouTube to the brain: Transfer learning can improve brain-imaging predictions with "
    "deep learning.",
    "Chen et al. (2019)": "Med3D: Transfer learning for 3D medical image analysis.",
    "Peng et al. (2021)": "Accurate brain age prediction with lightweight deep neural networks.",
}


@dataclass(frozen=True)
class _Training:
    """A finished fine-tuning's files."""

    config: dict[str, Any]
    results: pd.DataFrame
    predictions: pd.DataFrame
    metrics: pd.DataFrame | None
    structural: bool

    @property
    def key(self) -> tuple[str, float]:
        return self.config["variant"], self.config["fraction"]

    @property
    def columns(self) -> list[str]:
        """The numbers that are told; none if states are decoded."""
        return [str(c).removeprefix("true ") for c in self.predictions if str(c).startswith("true ")]


def study_page(folders: Sequence[Path], maps: Path | None = None, title: str = "", more: Sequence[Part] = ()) -> str:
    """The report on fine-tunings of one study as HTML.

    Parameters
    ----------
    folders : training folders; the first one's decoder (its variant and fraction) is the study's, with all its folds
        and seeds that are given, and the others stand beside it
    maps : a folder of `deeplight explain` for it, in MNI space
    more : parts to put before the methods

    Raises
    ------
    ValueError
        If a folder is no finished fine-tuning, they are of different profiles or targets, or two are of one fold.
    """
    trainings = [_read(folder) for folder in folders]
    first, given = trainings[0], dict[tuple[Any, ...], Path]()
    for folder, other in zip(folders, trainings, strict=True):
        if other.config["profile"]["name"] != first.config["profile"]["name"]:
            raise ValueError(
                f"{folder} is of profile {other.config['profile']['name']}, {folders[0]} of "
                f"{first.config['profile']['name']}; give trainings of one study"
            )
        if not ("state" in other.predictions or other.columns) or any(" = " in str(c) for c in other.predictions):
            raise ValueError(f"{folder} tells neither states nor numbers alone; a report is about decoders of these")
        if other.columns != first.columns:
            told = [", ".join(t.columns) or "states" for t in (other, first)]
            raise ValueError(f"{folder} decodes {told[0]}, {folders[0]} {told[1]}; give trainings with the same target")
        same = (*other.key, other.config["seed"], other.config["fold"])
        if same in given:
            raise ValueError(
                f"{given[same]} and {folder} are both {other.key[0]} on {other.key[1]:.0%}, seed {same[2]}, "
                f"fold {same[3]}, with other settings or twice; give one of them (`ls -t` lists the newest first)"
            )
        given[same] = folder
    own, columns = [t for t in trainings if t.key == first.key], first.columns
    predictions = pd.concat([t.predictions.assign(fold=t.config["fold"]) for t in own], ignore_index=True)
    results = pd.concat([t.results for t in trainings], ignore_index=True)
    profile = Profile.model_validate(first.config["profile"])
    answered = number_parts(predictions, columns) or [_accuracy(predictions), _confusion(predictions)]
    compared = [_comparison(trainings, results, column) for column in columns] or [_comparison(trainings, results)]
    parts = [
        _summary(profile, own, predictions), _subjects(profile, own), *answered, _curves(own[0]),
        *([_maps(maps)] if maps else []), *compared, *more,
        _methods(profile, own),
    ]  # fmt: skip
    return document(title or f"{profile.name}: {VARIANTS[first.key[0]].title}", parts)


def _read(folder: Path) -> _Training:
    if not (folder / "scores.csv").is_file():
        raise ValueError(f"{folder} is no finished training (it has no scores.csv)")
    text: dict[str, Any] = {"dtype": {"subject": str}, "keep_default_na": False}
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if config["stage"] != "pretraining":
            metrics = pd.read_csv(folder / "metrics.csv", **text) if (folder / "metrics.csv").is_file() else None
            results = pd.read_csv(folder / "scores.csv", **text)[list(scores.COLUMNS)]
            structural = (folder / "model.json").is_file() and read_record(folder)["data"]["tr_s"] is None
            return _Training(config, results, pd.read_parquet(folder / "predictions.parquet"), metrics, structural)
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        first = str(error).split("\n", 1)[0][:200]
        raise ValueError(f"{folder} is damaged; remove it and train again: {first}") from None
    raise ValueError(f"{folder} is a pre-training; a report is about fine-tunings")


def _summary(profile: Profile, own: list[_Training], predictions: pd.DataFrame) -> Part:
    about = [profile.provenance.replace("**", "").replace("`", "")]
    if columns := own[0].columns:
        told = f"{VARIANTS[own[0].key[0]].title}, trained on {_counts(own)}"
        return Part("", [*about, *(number_sentence(told, profile.data.split_unit, predictions, c) for c in columns)])
    table, p = subject_accuracies(predictions)
    n_states = len({*zip(predictions["task"], predictions["state"], strict=True)})
    mean = table["accuracy"].mean()
    interval = ""
    if len(table) > 1:
        low, high = statistics.t_interval(table["accuracy"].to_numpy(), 0.95)
        interval = f"95% interval {low:.1%} to {high:.1%}; "
    tested = f"{len(table)} {profile.data.split_unit}{'' if len(table) == 1 else 's'}"
    sentence = (
        f"{VARIANTS[own[0].key[0]].title}, trained on {_counts(own)}, decodes {n_states} states of {tested} that it "
        f"was not trained on: {mean:.1%} of their blocks are right ({interval}permutation test p = {p:.2g}; chance is "
        f"about {1 / n_states:.0%})."
    )
    return Part("", [*about, sentence])


def _counts(own: list[_Training]) -> str:
    counts = sorted({len(t.config["units"]) for t in own})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unit = own[0].config["profile"]["data"]["split_unit"]
    folds = len({t.config["fold"] for t in own})
    return f"{many} {unit}{'' if counts[-1] == 1 else 's'}" + (f" in each of {folds} folds" if folds > 1 else "")


def _subjects(profile: Profile, own: list[_Training]) -> Part:
    """Who was trained and tested on, and how good their runs are, if the store is at hand."""
    trained, tested = ({u for t in own for u in t.config[key]} for key in ("units", "reported"))
    roles = {
        u: " and ".join(w for w, of in (("training", trained), ("test", tested)) if u in of) for u in trained | tested
    }
    both = " In a cross-validation everybody is in both, in different folds." if trained & tested else ""
    text = [f"{profile.data.split_unit.capitalize()}s trained on: {len(trained)}; tested: {len(tested)}.{both}"]
    try:
        store = open_store(profile.store)
    except ValueError:
        text.append("The prepared data are not at hand, so the quality of the runs is left out.")
        return Part(
            "Subjects and quality", text, table=pd.DataFrame(sorted(roles.items()), columns=["subject", "role"])
        )
    units = store.runs["file"].map(store.index.drop_duplicates("file").set_index("file")["unit"])
    rows = []
    for name, of in store.runs[units.isin(roles)].groupby(units):
        row: dict[str, Any] = {"subject": name, "role": roles[str(name)], "runs": len(of)}
        if "median_tsnr" in of:
            row["tSNR (median of runs)"] = f"{of['median_tsnr'].median():.0f}"
        rows.append(row)
    return Part("Subjects and quality", text, table=pd.DataFrame(rows))


def subject_accuracies(predictions: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, float]:
    """Each subject's share of blocks whose state is decoded, with what chance would give.

    A block's answer is its volumes' mean probability; where nothing has blocks, every example counts by itself. The
    interval is Wilson's (1927); it takes blocks as independent. In a permutation test the states of each run's blocks
    (where a run has a single one: of all runs) are exchanged.

    Returns
    -------
    `subject, n, accuracy, low, high, p`; p of the mean over subjects, from the same permutations
    """
    answers = [str(c) for c in predictions if ": " in str(c)]
    rows = predictions
    if (predictions["block"] >= 0).any():
        rows = predictions[predictions["block"] >= 0]
        rows = rows.groupby([*_WHERE, "block", "state"], sort=False)[answers].mean().reset_index()
    places = pd.Index(answers)
    truth = places.get_indexer(pd.Index(rows["task"] + ": " + rows["state"]))
    answered = rows[answers].to_numpy().argmax(axis=1)
    run = rows.groupby(_WHERE, sort=False).ngroup().to_numpy()
    if np.bincount(run).max() == 1:
        run = np.zeros(len(rows), int)
    subject, names = pd.factorize(rows["subject"], sort=True)
    n = np.bincount(subject)
    random, order = np.random.default_rng([seed, 0x5EED]), np.argsort(run, kind="stable")
    observed = np.bincount(subject, truth == answered) / n
    chance = np.empty((PERMUTATIONS, len(n)))
    for i in range(PERMUTATIONS):
        shuffled = np.empty_like(truth)
        shuffled[order] = truth[np.lexsort([random.random(len(run)), run])]
        chance[i] = np.bincount(subject, shuffled == answered) / n
    p = (1 + (chance >= observed - 1e-12).sum(axis=0)) / (1 + PERMUTATIONS)
    of_mean = (1 + (chance.mean(axis=1) >= observed.mean() - 1e-12).sum()) / (1 + PERMUTATIONS)
    low, high = proportion_confint((observed * n).round(), n, method="wilson")
    table = pd.DataFrame({"subject": names, "n": n, "accuracy": observed, "low": low, "high": high, "p": p})
    return table, float(of_mean)


def _accuracy(predictions: pd.DataFrame) -> Part:
    table, p = subject_accuracies(predictions)
    shown = pd.DataFrame({
        "subject": table["subject"], "blocks": table["n"], "right": table["accuracy"].map("{:.0%}".format),
        "95% interval": [f"{a:.0%} to {b:.0%}" for a, b in zip(table["low"], table["high"], strict=True)],
        "permutation p": table["p"].map("{:.2g}".format),
    })  # fmt: skip
    return Part("Accuracy of every subject", [
        "Share of blocks whose state is decoded. A subject's interval is Wilson's, which takes blocks as independent; "
        f"p is from {PERMUTATIONS} permutations of the states of each run's blocks, not corrected for the number of "
        f"subjects. For the mean over subjects p = {p:.2g}.",
    ], table=shown)  # fmt: skip


def _confusion(predictions: pd.DataFrame) -> Part:
    states = sorted({*zip(predictions["task"], predictions["state"], strict=True)})
    figure = plots.confusion_matrix(scores.confusion(predictions, states))
    return Part("Which states are mistaken for which", figures={"Rows are true states, columns decoded ones.": figure})


def _curves(training: _Training) -> Part:
    if training.metrics is None or training.metrics.empty:
        return Part("Learning curves", ["A linear model has none."])
    n_states, figures = sum(": " in str(c) for c in training.predictions), {}
    for target, rows in training.metrics.groupby("target", sort=False):
        measure = MEASURES[rows["measure"].iloc[0]]
        caption = f"{target}: {measure.title} per epoch, in training (with dropout) and on held-out data."
        figures[caption] = plots.task_curves(rows, n_states, measure)
    return Part("Learning curves", figures=figures)


def _maps(folder: Path) -> Part:
    files = sorted((folder / "group").glob("*.nii.gz"))
    if not files or not (folder / "explanation.json").is_file():
        raise ValueError(f"{folder} is no folder of `deeplight explain`: it lacks explanation.json, or maps in group/")
    images = {file.name.removesuffix(".nii.gz"): nib.load(file) for file in files}
    figures: dict[str, Figure] = {
        "Relevance through the skull: red speaks for the state, blue against it.": plots.glass_brains(images)
    }
    figures["The same on slices."] = plots.activation_maps(images)
    places = pd.read_csv(folder / "regions.csv").groupby("state", sort=False).head(3)
    return Part("Where decisions come from", [PLACES], table=places.round(3), figures=figures)


def _comparison(trainings: list[_Training], results: pd.DataFrame, column: str | None = None) -> Part:
    """All decoders that were given, and paired tests of the first against each other one; of states, or of a column."""
    measure = MEASURES["accuracy" if column is None else "absolute_error"]
    own, signed = statistics.out_of_fold(statistics.only(results, measure.name, target=column)), "+.3g"
    if measure.unit == "share":
        signed = "+.1%"
    first, rows = trainings[0].key, []
    for row in statistics.mean_intervals(own).to_dict("records"):
        key, test = (row["variant"], row["fraction"]), None
        if key != first and len({t.config["seed"] for t in trainings if t.key in (key, first)}) == 1:
            test = statistics.compare_cells(own, first, key)
        rows.append({
            "decoder": VARIANTS[row["variant"]].title, "fraction": f"{row['fraction']:.0%}",
            "volumes right" if column is None else measure.title: measure.format(row["mean"]),
            "95% interval": f"{measure.format(row['low'])} to {measure.format(row['high'])}",
            "study's decoder minus this one": "–" if test is None else f"{test['difference']:{signed}}",
            "paired t-test": "–" if test is None else f"p = {test['p']:.2g}",
        })  # fmt: skip
    linear = any(VARIANTS[t.key[0]].learner != "deep" for t in trainings)
    note = (
        "" if linear else "No linear decoder was given; a linear one belongs beside every network (--variant linear)."
    )
    return Part(
        "Beside other decoders" + (f": {column}" if column else ""),
        [f"Means over subjects of {'the share of volumes' if column is None else 'their volumes’ errors'}.", note][
            : 1 + bool(note)
        ],
        table=pd.DataFrame(rows),
    )


def _methods(profile: Profile, own: list[_Training]) -> Part:
    """Sentences that are true of these settings, with their references."""
    variant, training = VARIANTS[own[0].key[0]], profile.finetuning.of(own[0].key[0])
    paper = ROUTES[own[0].config["route"]].paper.removeprefix("after ")
    after = f"; after {paper}" if variant.learner == "deep" else ""
    unit, folds = profile.data.split_unit, profile.sweep.folds
    starts = {
        "checkpoint": f"Its encoder was pre-trained (route {variant.route}); its output layer was new.",
        "random": "It started from random weights.",
        "shuffled": "It started from pre-trained weights in random order.",
    }
    learning = "It was fitted with scikit-learn (Pedregosa et al. 2011)."
    if variant.learner == "deep":
        learning = (
            f"It was trained with Adam (Kingma & Ba 2015), batches of {training.batch_size}, a learning rate of "
            f"{training.learning_rate:g} ({training.schedule}) and {_steps(own)} steps."
        )
    sentences = [
        _of_images(profile) if any(t.structural for t in own) else _preparation(profile),
        f"The decoder ({variant.title}{after}) was trained on {_counts(own)}.",
        starts[variant.start] if variant.learner == "deep" else "",
        learning,
        f"It was evaluated {f'in {folds}-fold cross-validation over' if folds else 'on other'} {unit}s.",
        _measured(own[0].columns, unit),
        "Computed with deeplight_core, PyTorch (Paszke et al. 2019), nilearn (Abraham et al. 2014) and "
        "scikit-learn (Pedregosa et al. 2011).",
    ]  # fmt: skip
    references = [
        "Abraham et al. (2014). Machine learning for neuroimaging with scikit-learn. Front. Neuroinform. 8:14.",
        "Kingma & Ba (2015). Adam: A method for stochastic optimization. ICLR.",
        "Paszke et al. (2019). PyTorch: An imperative style, high-performance deep learning library. NeurIPS 32.",
        "Pedregosa et al. (2011). Scikit-learn: Machine learning in Python. JMLR 12:2825-2830.",
    ]
    if after:
        references.append(f"{paper}. {_TITLES.get(paper.split(')')[0] + ')', '')}".rstrip())
    return Part("Methods text to paste", quotable=" ".join(filter(None, sentences)) + "\n\n" + "\n".join(references))


def _steps(own: list[_Training]) -> str:
    """How many steps the trainings took."""
    last = [int(t.metrics["step"].max()) for t in own if t.metrics is not None and len(t.metrics)]
    if not last:
        return "an unknown number of"
    return f"{min(last):,}" if min(last) == max(last) else f"{min(last):,} to {max(last):,}"


def _measured(columns: list[str], unit: str) -> str:
    """How scores are made."""
    compared = "Decoders were compared by paired t-tests."
    if columns:
        return (
            f"A {unit}'s answer is the mean over its volumes, its error the absolute difference from the "
            f"truth, averaged over {unit}s, the unit of all statistics. The error's interval is Student's t, the "
            f"correlation's a percentile bootstrap over {unit}s; p values come from {PERMUTATIONS} permutations of the "
            f"truths among {unit}s that were held out together. {compared}"
        )
    return (
        "Accuracy is the share of blocks whose mean probability is largest for the right state, averaged over "
        f"{unit}s, the unit of all statistics. Its interval is Student's t over {unit}s, its p value comes from "
        f"{PERMUTATIONS} permutations of the states of each run's blocks. {compared}"
    )


def _preparation(profile: Profile) -> str:
    prepared = profile.preprocessing
    steps = [
        f"smoothed (Gaussian, {prepared.fwhm_mm:g} mm full width at half maximum)" if prepared.fwhm_mm else "",
        "linearly detrended" if prepared.detrend else "",
        f"high-pass filtered ({prepared.high_pass_hz:.4g} Hz)" if prepared.high_pass_hz else "",
        "z-scored in every voxel",
    ]
    return f"Runs were {', '.join(filter(None, steps))}."


def _of_images(profile: Profile) -> str:
    """How structural images were prepared."""
    settings = profile.preprocessing.structural
    grid = f" of {settings.resolution_mm:g} mm" if settings.resolution_mm else ""
    steps = [
        "registered to MNI152 (affine)" if settings.registration == "affine" else "",
        "masked, scaled to values from 0 to 1",
        f"brought to one grid{grid}",
        "z-scored in every voxel over the training images" if settings.z_score else "",
    ]
    return f"Structural images were {', '.join(filter(None, steps))}."
