"""The results of Thomas, Müller & Samek (2019), item by item, and the same computed from a run.

Only this file holds the paper's results; its settings are in `profiles/paper.yaml`, tasks and durations in `tasks`.
Claims of the other papers are in `findings.claims`, in tables of the same rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from deeplight_core.analysis.scores import at_the_end, common_steps
from deeplight_core.analysis.statistics import against_chance, balanced, compare, compare_cells, subject_means
from deeplight_core.config import Profile, differences
from deeplight_core.data.events import label_frames
from deeplight_core.data.manifest import unit_names
from deeplight_core.data.simulate import design, grid
from deeplight_core.data.store import Store
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import planned
from deeplight_core.tasks import HCP_TR_S, TASKS
from deeplight_core.training.examples import draw_units

if TYPE_CHECKING:  # it imports torch
    from deeplight_core.models.deeplight import Layer

__all__ = [
    "N_TRAIN",
    "REPORTED",
    "VERDICTS",
    "Row",
    "decoder_facts",
    "deviations",
    "full_run",
    "label_rule",
    "last_epoch_accuracy",
    "reported_difference",
    "rows_table",
    "side_by_side",
    "table1",
]

N_TRAIN = 300
"""Number of training subjects (section 3.1); the profile has that of held-out ones."""

REPORTED = {
    "pretraining accuracy, training": 0.7604,
    "pretraining accuracy, validation": 0.7055,
    "pretraining accuracy, lowest of five tasks": 0.7000,
    "pretraining accuracy, highest of five tasks": 0.8612,
    "pretraining accuracy, gambling": 0.2818,
    "pretraining accuracy without gambling, training": 0.8456,
    "pretraining accuracy without gambling, validation": 0.7902,
    "scratch, 100%, training": 0.8857,
    "scratch, 100%, validation": 0.8191,
    "pretrained, 100%, training": 0.9243,
    "pretrained, 100%, validation": 0.8383,
    "t, 100%": 8.42,
    "pretrained, 1%, validation": 0.6751,
    "scratch, 1%, validation": 0.3249,
    "difference, 1%": 0.3502,
    "t, 1%": 49.68,
    "t, pretrained at 40% against scratch at 100%": 2.82,
    "p, pretrained at 40% against scratch at 100%": 0.0057,
}
"""Values of sections 3.1 and 3.2."""

_DECODER = {
    "convolutions (kernels, stride)": "16(1) 16(1) 16(2) 16(1) 32(2) 32(1) 32(2) 32(1) 64(2) 64(1) 64(2) 64(1)",
    "features per slice": "768",
    "LSTMs × units": "2 × 64",
    "output neurons": "16",
    "parameters": "not stated",
}
"""Section 2.2 and Fig. 1."""

_WHY = {
    "WM": "HCP's blocks last 27.5 s; the paper's figure counts the ten trials, 25 s, without the cue",
    "GAMBLING": "the paper's figure counts whole blocks; labels cover events of 3.5 s, less two volumes each",
    "MOTOR": "the paper's figure counts three fixation blocks beside the ten movement blocks",
    "LANGUAGE": "the paper's figure counts eight blocks of 30 s; stories and sums vary in length",
    "SOCIAL": "HCP's videos last 23 s with the response; the paper's figure counts 20 s",
    "RELATIONAL": "the same blocks, less two volumes each",
    "EMOTION": "the same blocks, less two volumes each",
}


def label_rule(settings: PreprocessingSettings) -> pd.Series:
    """Volumes per subject and task that a label rule keeps of HCP's block structure in two runs at TR 0.72 s.

    The blocks are those of the simulated design; in HCP's own event files they vary a little between subjects.
    """
    kept = dict.fromkeys(TASKS, 0)
    for name, task in TASKS.items():
        for run in ("LR", "RL"):
            events = design(name, run, seed=0)
            named = [(state, ev) for state, evs in task.states.items() for ev in evs if ev in events]
            blocks = pd.concat([events[ev].assign(state=state) for state, ev in named])
            kept[name] += len(label_frames(blocks, task.n_frames, HCP_TR_S, settings).frames)
    return pd.Series(kept, name="kept")


def full_run(recipe: Profile) -> pd.DataFrame:
    """Volumes that the paper's own run sees: `pre-training` and the `sweep` of DeepLight's variants over all fractions.

    Columns: `trainings`, `epochs of each`, `volumes per epoch` (with all subjects), `volumes trained on`, `volumes
    validated on`.
    """
    kept = label_rule(recipe.preprocessing)
    source, target = (kept[recipe.data.tasks(which)].sum() for which in ("source", "target"))
    cells = [cell for cell in planned(recipe, "sweep") if VARIANTS[cell.variant].learner == "deep"]
    subjects = [f"subject {i}" for i in range(N_TRAIN)]
    n_subjects = sum(len(draw_units(subjects, cell.fraction, cell.seed)) for cell in cells)
    epochs, n_validation = (
        (recipe.routes.supervised.pretraining.epochs, recipe.finetuning.epochs),
        recipe.data.n_validation,
    )
    return pd.DataFrame(
        {
            "trainings": [1, len(cells)],
            "epochs of each": epochs,
            "volumes per epoch": [N_TRAIN * source, N_TRAIN * target],
            "volumes trained on": [epochs[0] * N_TRAIN * source, epochs[1] * n_subjects * target],
            "volumes validated on": [epochs[0] * n_validation * source, epochs[1] * len(cells) * n_validation * target],
        },
        index=["pre-training", "sweep"],
    )


def table1(index: pd.DataFrame, tr_s: float) -> pd.DataFrame:
    """Table 1: seconds of data per subject and task, in the paper and by the label rule.

    Parameters
    ----------
    index : a store's index (`task, unit`), one row per kept volume
    tr_s : its repetition time

    Returns
    -------
    per task of the paper and in total: `targets`; `paper`, seconds; `formula`, where they come from; `label rule`,
    seconds that the paper's rule keeps (`label_rule`); `this run`, seconds per subject in `index` (NaN for a task that
    it lacks); `why` they differ
    """
    rows = {}
    n_units = index.groupby("task")["unit"].nunique()
    kept = index.groupby("task").size() / n_units * tr_s
    by_rule = label_rule(PreprocessingSettings()) * HCP_TR_S
    for name, task in TASKS.items():
        formula = f"{task.block_s:g} s × {task.n_blocks} blocks × 2 runs"
        rows[name] = (
            len(task.states),
            task.table1_duration_s,
            formula,
            by_rule[name],
            kept.get(name, np.nan),
            _WHY[name],
        )
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=["targets", "paper", "formula", "label rule", "this run", "why"]
    )
    sums = table[["targets", "paper", "label rule", "this run"]].sum(min_count=1)
    return pd.concat([table, pd.DataFrame([{**sums, "formula": "", "why": ""}], index=["Total"])])


def deviations(recipe: Profile, profile: Profile, store: Store, manifest: pd.DataFrame) -> pd.DataFrame:
    """Differences of a run from the paper: grid, repetition time, numbers of units, settings.

    Parameters
    ----------
    recipe : the paper's own profile
    manifest : the rows that the store was made from

    Returns
    -------
    a row for each difference, with columns `paper` and `this run`
    """
    units = unit_names(manifest, profile.data.split_unit).groupby(manifest["split"]).nunique()
    facts = {
        "paper": _size(*grid(resolution_mm=2), HCP_TR_S, [N_TRAIN, recipe.data.n_validation]),
        "this run": _size(store.mask.shape, store.affine, store.info["tr_s"], [units[split] for split in store.splits]),
    }
    names = ["grid (voxels)", "voxel (mm)", "TR (s)", f"{profile.data.split_unit}s (training + validation)"]
    table = pd.DataFrame(facts, index=names)
    return pd.concat([table[table["paper"] != table["this run"]], differences(recipe, profile)])


def _size(shape: tuple[int, ...], affine: np.ndarray, tr_s: float | None, n_units: list[int]) -> list[str]:
    return [
        " × ".join(map(str, shape)),
        " × ".join(f"{mm:g}" for mm in voxel_sizes(affine)),
        "–" if tr_s is None else f"{tr_s:g}",
        " + ".join(map(str, n_units)),
    ]


def decoder_facts(full_grid: "list[Layer]", this_run: "list[Layer]") -> pd.DataFrame:
    """Fig. 1 in numbers: the paper's decoder beside two models' own layers.

    Parameters
    ----------
    full_grid, this_run : `DeepLight.layers()` on the paper's grid, and on this run's
    """
    rows = []
    for (fact, paper), *own in zip(_DECODER.items(), _facts(full_grid), _facts(this_run), strict=True):
        rows.append((fact, paper, *own))
    return pd.DataFrame(rows, columns=["decoder", "paper", "here, on the paper's grid", "here, on this run's grid"])


def _facts(layers: "list[Layer]") -> list[str]:
    convolutions = [layer for layer in layers if layer.kind == "convolution"]
    lstm, head = layers[-2:]
    return [
        " ".join(f"{layer.output_shape[1]}({layer.stride})" for layer in convolutions),
        str(int(np.prod(convolutions[-1].output_shape[1:]))),
        " × ".join(map(str, lstm.output_shape)),
        str(head.output_shape[0]),
        f"{sum(layer.n_parameters for layer in layers):,}",
    ]


def last_epoch_accuracy(metrics: pd.DataFrame, split: str, without: tuple[str, ...] = ()) -> pd.Series:
    """Accuracy per subject after the last epoch: the mean over its tasks, some left out.

    The paper's numbers are such means, too: with five tasks at 79.02% and gambling at 28.18% they give its 70.55%
    over all six, where a mean over volumes would give 72% (weighted by the seconds of Table 1).

    Parameters
    ----------
    metrics : `epoch, split, task, subject, score` of one training, or of several (see `scores.at_the_end`)
    """
    last = at_the_end(metrics[metrics["split"] == split])
    return last[~last["task"].isin(without)].groupby("subject")["score"].mean()


def reported_difference() -> str:
    """A sentence on the paper's difference between both decoders."""
    all_data = REPORTED["pretrained, 100%, validation"] - REPORTED["scratch, 100%, validation"]
    return (
        f"In the paper it is {_points(REPORTED['difference, 1%'])} at 1% and {_points(all_data)} at 100%; the page "
        "*Paper and this run, side by side* has every number."
    )


VERDICTS: dict[bool | None, str] = {True: "holds here", False: "does not hold here", None: "cannot be tested here"}
"""What can become of a paper's claim."""


@dataclass(frozen=True)
class Row:
    """A paper's number or claim beside this run's.

    where : in the paper
    quantity : what is stated
    paper, ours : what is found there and here; `ours` says why a claim cannot be tested
    claim : the rule by which the claim holds, whatever is found; empty for a mere number
    holds : None where the rule cannot be applied
    """

    where: str
    quantity: str
    paper: str
    ours: str = "not in this run"
    claim: str = ""
    holds: bool | None = None


def side_by_side(
    pretraining: pd.DataFrame,
    curves: pd.DataFrame,
    results: pd.DataFrame,
    n_source: int,
    constant: tuple[float, float],
    fractions: list[float],
) -> pd.DataFrame:
    """Every number of sections 3.1 and 3.2 beside the same number of this run, and whether the paper's claim holds.

    A claim is the direction that the paper states and, where the paper tests it, its significance: at 0.05 over the
    number of planned fractions (Bonferroni). Numbers that the run lacks are marked; a test that cannot be made decides
    nothing.

    Parameters
    ----------
    pretraining : metrics of the pre-training (`epoch, split, task, subject, score`)
    curves : metrics of the fine-tunings (`collect.sweep_curves`)
    results : the results table
    n_source : number of states of the source
    constant : `scores.constant_answer` of the source and of the target, which a decoder has to beat
    fractions : the planned ones

    Returns
    -------
    as `rows_table` gives it
    """
    curves, results = (balanced(t[t["variant"].isin(["pretrained", "scratch"])]) for t in (curves, results))
    alpha = 0.05 / len(fractions)
    rows = [*_pretraining_rows(pretraining, n_source, constant[0], alpha)]
    rows += _full_data_rows(curves, results, alpha)
    rows += _small_data_rows(results, constant[1], alpha)
    rows += _consistency_rows(curves, results, len(fractions))
    return rows_table(rows)


def rows_table(rows: list[Row]) -> pd.DataFrame:
    """`where, quantity, paper, this run, claim, verdict` (one of `VERDICTS`; empty for a mere number)."""
    return pd.DataFrame(
        [(r.where, r.quantity, r.paper, r.ours, r.claim, VERDICTS[r.holds] if r.claim else "") for r in rows],
        columns=["where", "quantity", "paper", "this run", "claim", "verdict"],
    )


def _pretraining_rows(metrics: pd.DataFrame, n_states: int, constant: float, alpha: float) -> list[Row]:
    rows = []
    for split, figure in (("training", "Fig. 2 A"), ("validation", "Fig. 2 B, C")):
        accuracy = last_epoch_accuracy(metrics, {"training": "train"}.get(split, split))
        rows.append(
            Row(
                figure, f"16 states, {split}" if n_states == 16 else f"{n_states} states, {split} (paper: 16)",
                _percent(REPORTED[f"pretraining accuracy, {split}"]),
                _percent(accuracy.mean()) if len(accuracy) else Row.ours,
                _better_than(constant), _above(accuracy, constant, alpha),
            )
        )  # fmt: skip
    last = at_the_end(metrics[metrics["split"] == "validation"])
    tasks = last.groupby("task")["score"].mean()
    others = tasks.drop("GAMBLING", errors="ignore")
    low, high = (REPORTED[f"pretraining accuracy, {which} of five tasks"] for which in ("lowest", "highest"))
    there = "GAMBLING" in tasks and len(others) > 0
    rows.append(
        Row(
            "Fig. 2 C", "the other tasks, validation", f"{_percent(low)} to {_percent(high)}",
            f"{_percent(others.min())} to {_percent(others.max())}" if there else Row.ours,
        )
    )  # fmt: skip
    paper = _percent(REPORTED["pretraining accuracy, gambling"])
    ours = _percent(tasks["GAMBLING"]) if there else Row.ours
    worst = bool(tasks.idxmin() == "GAMBLING") if there else None
    rows.append(Row("Fig. 2 C", "gambling, validation", paper, ours, "the hardest task", worst))
    for split in ("training", "validation"):
        name = {"training": "train"}.get(split, split)
        without = last_epoch_accuracy(metrics, name, ("GAMBLING",)).mean()
        paper = _percent(REPORTED[f"pretraining accuracy without gambling, {split}"])
        rows.append(Row("3.1", f"without gambling, {split}", paper, _percent(without) if there else Row.ours))
    return rows


def _full_data_rows(curves: pd.DataFrame, results: pd.DataFrame, alpha: float) -> list[Row]:
    rows = []
    for variant, title, panels in (("scratch", "from scratch", "A, D"), ("pretrained", "pre-trained", "B, E")):
        for split, panel in zip(("training", "validation"), panels.split(", "), strict=True):
            chosen = curves[(curves["variant"] == variant) & (curves["fraction"] == 1)]
            accuracy = last_epoch_accuracy(chosen, {"training": "train"}.get(split, split))
            rows.append(
                Row(
                    f"Fig. 3 {panel}", f"{title}, all data, {split}", _percent(REPORTED[f"{variant}, 100%, {split}"]),
                    _percent(accuracy.mean()) if len(accuracy) else Row.ours,
                )
            )  # fmt: skip
    claim = "pre-trained is better, significant"
    paper = f"{_points(REPORTED['pretrained, 100%, validation'] - REPORTED['scratch, 100%, validation'])}, "
    paper += f"t(99) = {REPORTED['t, 100%']:.2f}, p < 0.0001"
    return [*rows, _tested("Fig. 3 F", "difference, all data", paper, claim, results, 1.0, alpha)]


def _small_data_rows(results: pd.DataFrame, constant: float, alpha: float) -> list[Row]:
    rows = []
    small = results[results["fraction"] == 0.01]
    n = f" (n = {small['n_subjects'].iloc[0]}; paper: 3)" if len(small) else " (paper: n = 3)"
    for variant, title, panel in (("pretrained", "pre-trained", "E"), ("scratch", "from scratch", "D")):
        values = subject_means(small[small["variant"] == variant])["score"]
        ours = _percent(values.mean()) if len(values) else Row.ours
        claim, holds = ("", None)
        if variant == "pretrained":
            claim, holds = _better_than(constant), _above(values, constant, alpha)
        paper = _percent(REPORTED[f"{variant}, 1%, validation"])
        rows.append(Row(f"Fig. 3 {panel}", f"{title}, 1%{n}", paper, ours, claim, holds))
    paper = f"{_points(REPORTED['difference, 1%'])}, t(99) = {REPORTED['t, 1%']:.2f}, p < 0.0001"
    rows.append(
        _tested("Fig. 3 F", f"difference, 1%{n}", paper, "pre-trained is better, significant", results, 0.01, alpha)
    )
    name = "pretrained at 40% against scratch at 100%"
    paper = f"t(99) = {REPORTED[f't, {name}']:.2f}, p = {REPORTED[f'p, {name}']:.4f}"
    claim, quantity = "better with 40% of the data, significant", "pre-trained on 40% against from scratch on 100%"
    try:
        test = compare_cells(results, ("pretrained", 0.4), ("scratch", 1.0))
    except ValueError:
        return [*rows, Row("3.2", quantity, paper, claim=claim)]
    return [*rows, Row("3.2", quantity, paper, _t(test), claim, _significant(test, alpha))]


def _consistency_rows(curves: pd.DataFrame, results: pd.DataFrame, n_fractions: int) -> list[Row]:
    rows = []
    ends = at_the_end(curves)
    for split, panel in (("train", "C"), ("validation", "F")):
        means = ends[ends["split"] == split].groupby(["fraction", "variant"])["score"].mean().unstack()
        quantity = f"fractions at which pre-trained is higher, {'training' if split == 'train' else split}"
        claim = "higher at every fraction"
        means = means.reindex(columns=["pretrained", "scratch"]).dropna()
        higher = int((means["pretrained"] > means["scratch"]).sum())
        if means.empty:
            rows.append(Row(f"Fig. 3 {panel}", quantity, "7 of 7", claim=claim))
            continue
        ours = f"{higher} of {len(means)}"
        holds: bool | None = higher == len(means)
        if len(means) < n_fractions:  # a lower one decides; a missing one does not
            ours, holds = f"{ours} ({n_fractions} planned)", None if holds else False
        if split == "validation":
            table = compare(results, n_tests=n_fractions)
            ours += f"; {int((table['significant'] & table['better']).sum())} significant"
        rows.append(Row(f"Fig. 3 {panel}", quantity, "7 of 7", ours, claim, holds))
    return [*rows, _time_row(curves)]


def _time_row(curves: pd.DataFrame) -> Row:
    where, quantity = "Fig. 3 D, E", "steps to reach from scratch's last accuracy, all data"
    claim = "less training time"
    held_out = common_steps(curves[(curves["split"] == "validation") & (curves["fraction"] == 1)])
    by_step = held_out.groupby(["variant", "step"])["score"].mean()
    if not {"pretrained", "scratch"} <= set(held_out["variant"]):
        return Row(where, quantity, "fewer", claim=claim)
    goal = by_step["scratch"].iloc[-1]
    needed = {v: by_step[v][by_step[v] >= goal].index.min() for v in ("pretrained", "scratch")}
    ours = ", ".join(
        f"{title} {needed[v]:,.0f}" if np.isfinite(needed[v]) else f"{title} never"
        for v, title in (("pretrained", "pre-trained"), ("scratch", "from scratch"))
    )
    return Row(where, quantity, "fewer", ours, claim, bool(needed["pretrained"] < needed["scratch"]))


def _tested(
    where: str, quantity: str, paper: str, claim: str, results: pd.DataFrame, fraction: float, alpha: float
) -> Row:
    """A row on the difference between both decoders at one fraction."""
    try:
        test = compare_cells(results, ("pretrained", fraction), ("scratch", fraction))
    except ValueError:
        return Row(where, quantity, paper, claim=claim)
    ours = f"{_points(test['difference'])}, {_t(test)}"
    return Row(where, quantity, paper, ours, claim, _significant(test, alpha))


def _significant(test: dict[str, float], alpha: float) -> bool | None:
    return None if np.isnan(test["p"]) else bool(test["better"] and test["p"] < alpha)


def _better_than(constant: float) -> str:
    return f"better than any constant answer ({_percent(constant)}), significant"


def _above(accuracy: pd.Series, constant: float, alpha: float) -> bool | None:
    table = accuracy.rename("score").reset_index(drop=True).to_frame()
    table = table.assign(variant="", fraction=1.0, n_subjects=0, seed=1, task="", subject=table.index)
    test = against_chance(table, constant)
    if test.empty or np.isnan(test["p"].iloc[0]):
        return None
    return bool(test["better"].iloc[0] and test["p"].iloc[0] < alpha)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} points"


def _t(test: dict[Any, Any]) -> str:
    if np.isnan(test["t"]):
        return "no variance, no test"
    p = f"p = {test['p']:.4f}" if test["p"] >= 0.0001 else "p < 0.0001"
    return f"t({test['dof']:.0f}) = {test['t']:.2f}, {p}"
