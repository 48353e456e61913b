"""From one tidy table of subject scores to tests, intervals and effect sizes. Subjects are the unit.

Knows no files and no models: reads `variant, fraction, n_subjects, seed, task, subject, score`, gives tables. The
scores are of one measure, level and target, as `only` takes them from the results table. A difference is always a − b;
the measure (accuracy, if the table has no such column) decides whether it is `better` for a. A seed is a repetition
with its own training subjects, so variants are compared over the seeds that they share. Only `compare_folds` tests over
folds; the other tests are of the fixed split (fold 0).
"""

import warnings

import numpy as np
import pandas as pd
from scipy import optimize, stats

from deeplight_core.analysis.measures import ACCURACY, MEASURES, Measure

__all__ = [
    "against_chance",
    "balanced",
    "compare",
    "compare_cells",
    "compare_changes",
    "compare_fold_values",
    "compare_folds",
    "corrected",
    "fixed_split",
    "fold_intervals",
    "is_better",
    "mean_intervals",
    "only",
    "out_of_fold",
    "recalled",
    "shared_folds",
    "subject_means",
    "subjects_saved",
    "t_interval",
]

_RESAMPLES = 9999


def only(
    results: pd.DataFrame, measure: str = "accuracy", level: str = "volume", target: str | None = None
) -> pd.DataFrame:
    """The results table's rows of one measure, level and target; None takes the only target there is.

    Raises
    ------
    ValueError
        If none fits, or several targets do. An empty table is returned as it is.
    """
    fits = (results["measure"] == measure) & (results["level"] == level)
    targets = [target] if target is not None else list(results.loc[fits, "target"].unique())
    if len(targets) > 1:
        raise ValueError(f"{measure} of {level}s has targets {', '.join(targets)}: name one of them")
    chosen = results[fits & results["target"].isin(targets)]
    if chosen.empty and len(results):
        known = results[["measure", "level", "target"]].drop_duplicates().agg(", ".join, axis=1)
        asked = ", ".join([measure, level, *targets])
        raise ValueError(f"no results of {asked}; there are {'; '.join(known)}")
    return chosen


def shared_folds(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the folds that all variants have at a fraction and seed; an unfinished sweep has others."""
    cell = ["fraction", "seed"]
    variants = results.groupby(cell)["variant"].transform("nunique")
    return results[results.groupby([*cell, "fold"])["variant"].transform("nunique") == variants]


def out_of_fold(results: pd.DataFrame) -> pd.DataFrame:
    """Each subject's mean score over the `shared_folds` that held it out, as of one fixed split.

    For figures and descriptions; `compare_folds` tests decoders. Results of the fixed split are returned as they are.
    """
    if not len(results) or (results["fold"] == 0).all():
        return results
    results = shared_folds(results)
    cell = ["variant", "fraction"]
    of_folds = results.drop_duplicates([*cell, "seed", "fold"]).groupby(cell)["n_subjects"].mean().round().astype(int)
    n_subjects = of_folds.loc[pd.MultiIndex.from_frame(results[cell])].to_numpy()
    keys = [c for c in results if c not in ("fold", "score", "n", "seen_volumes", "seconds")]
    table = results.assign(n_subjects=n_subjects).groupby(keys, as_index=False, sort=False)
    means = table.agg(
        score=("score", "mean"), n=("n", "first"), seen_volumes=("seen_volumes", "mean"), seconds=("seconds", "mean")
    )
    return means.assign(fold=0)[list(results)]


def _measure(results: pd.DataFrame) -> Measure:
    """The one measure of a table."""
    values = {name: results[name].unique() for name in ("measure", "level", "target") if name in results}
    if mixed := [f"several {name}s ({', '.join(found)})" for name, found in values.items() if len(found) > 1]:
        raise ValueError(f"these results are of {' and '.join(mixed)}: take one with `only`")
    return MEASURES[values["measure"][0]] if len(values.get("measure", ())) else ACCURACY


def is_better(measure: Measure, difference: float) -> bool:
    """Whether a difference in a measure is in favour of the first of two decoders."""
    return bool(difference > 0 if measure.higher_is_better else difference < 0)


def fixed_split(results: pd.DataFrame) -> tuple[pd.DataFrame, Measure]:
    """The rows of the fixed split, and their measure."""
    measure = _measure(results)
    if "fold" not in results:
        return results, measure
    fixed = results[results["fold"] == 0]
    if fixed.empty and len(results):
        folds = ", ".join(map(str, sorted(results["fold"].unique())))
        raise ValueError(f"these results are of folds {folds} only, not of the fixed split: use `compare_folds`")
    return fixed, measure


def balanced(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seeds that all variants have at a fraction and task; an unfinished sweep has others."""
    return _of_shared_seeds(fixed_split(results)[0], ["fraction", "task"])


def _of_shared_seeds(results: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """The rows of the seeds that all variants have in a cell."""
    variants = results.groupby(cell)["variant"].transform("nunique")
    return results[results.groupby([*cell, "seed"])["variant"].transform("nunique") == variants]


def subject_means(results: pd.DataFrame) -> pd.DataFrame:
    """One score per variant, fraction and subject: the mean over the tasks and `balanced` seeds."""
    keys = ["variant", "fraction", "subject"]
    means = balanced(results).groupby(keys, as_index=False)
    return means.agg(score=("score", "mean"), n_subjects=("n_subjects", "first"))


def mean_intervals(results: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean score over subjects with its t interval, per variant and fraction.

    Returns
    -------
    `variant, fraction, n_subjects, n, mean, low, high` (n: held-out subjects; n_subjects: those trained on)
    """
    rows = []
    for (variant, fraction), group in subject_means(results).groupby(["variant", "fraction"], sort=False):
        low, high = t_interval(group["score"].to_numpy(), confidence)
        rows.append((variant, fraction, group["n_subjects"].iloc[0], len(group), group["score"].mean(), low, high))
    return pd.DataFrame(rows, columns=["variant", "fraction", "n_subjects", "n", "mean", "low", "high"])


def against_chance(results: pd.DataFrame, chance: float) -> pd.DataFrame:
    """Two-sided t-tests of the mean score against chance, per variant and fraction, Bonferroni over all rows.

    Returns
    -------
    the columns of `mean_intervals`, then `better` (than chance), `t, p, p_bonferroni`
    """
    table, measure = mean_intervals(results), _measure(results)
    table["better"] = [is_better(measure, mean - chance) for mean in table["mean"]]
    cells = subject_means(results).groupby(["variant", "fraction"], sort=False)["score"]
    tests = [_t_test(scores.to_numpy() - chance) for _, scores in cells]
    table["t"], table["p"] = zip(*tests, strict=True) if tests else ([], [])
    table["p_bonferroni"] = np.minimum(1.0, table["p"] * len(table))
    return table


def recalled(recalls: pd.DataFrame, chance: float, alpha: float = 0.05) -> pd.DataFrame:
    """One-sided t-tests over subjects of each state's recall against chance, Holm over the states.

    Parameters
    ----------
    recalls : `task, state, subject, score`, as `scores.recalls` gives it

    Returns
    -------
    `task, state, n, mean, low, high, p, p_bonferroni, p_holm, above` (chance); where all subjects have the same recall
    there is no test, and it is above if it is larger
    """
    rows = []
    for (task, state), group in recalls.groupby(["task", "state"], sort=False):
        values = group["score"].to_numpy()
        t, p = _t_test(values - chance)
        one_sided = p / 2 if t > 0 else 1 - p / 2
        rows.append((task, state, len(values), values.mean(), *t_interval(values, 0.95), one_sided))
    table = corrected(pd.DataFrame(rows, columns=["task", "state", "n", "mean", "low", "high", "p"]), len(rows))
    table["above"] = (table["p_holm"] < alpha) | (table["p"].isna() & (table["low"] > chance))
    return table


def compare(
    results: pd.DataFrame, a: str = "pretrained", b: str = "scratch", alpha: float = 0.05, n_tests: int = 0
) -> pd.DataFrame:
    """Paired t-tests of two variants over the same held-out subjects, one per fraction that both have.

    Parameters
    ----------
    results : the results table; the seeds that both variants have are averaged per subject first
    a, b : the variants; differences are a − b
    alpha : family-wise error rate; a fraction is significant if p < alpha / number of tests (Bonferroni, the paper's
        rule)
    n_tests : number of planned tests, if more than these: of an unfinished sweep, or with other tests of the same table

    Returns
    -------
    `fraction, n_subjects, n_seeds, n, mean_a, mean_b, difference, low, high` (95% t interval of the difference);
    `better`: whether the mean of `a` is the better one; `t, dof, p`; `p_permutation`: two-sided, over the signs of the
    differences (all of them up to 13 subjects, else 9,999 random ones); `bf10`: Bayes factor of a difference against
    none (JZS, Cauchy prior of scale √2/2, Rouder et al. 2009); `d`: standardised mean difference (mean over SD of the
    paired differences), with `d_low, d_high`, its 95% bootstrap interval (BCa, Efron 1987; too narrow for few
    subjects), and `d_t_low, d_t_high`, from the noncentral t distribution (Steiger & Fouladi 1997; exact where
    differences are normal); `p_bonferroni`, `p_holm` (Holm 1979), `significant`, `significant_holm`. Where all
    differences are equal there is no test: NaN.

    Raises
    ------
    ValueError
        If a variant is absent, or the two were not tested on the same subjects.
    """
    both = balanced(_of_variants(results, a, b))
    rows = [{"fraction": f, **compare_cells(both, (a, f), (b, f))} for f in _common_fractions(both, a, b)]
    table = corrected(pd.DataFrame(rows, columns=["fraction", *_COLUMNS]), n_tests)
    table["significant"] = table["p_bonferroni"] < alpha
    table["significant_holm"] = table["p_holm"] < alpha
    return table


def _of_variants(results: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    if absent := [v for v in (a, b) if v not in set(results["variant"])]:
        there = ", ".join(results["variant"].unique()) or "none"
        raise ValueError(f"no results of variant {', '.join(absent)}; there are {there}")
    return results[results["variant"].isin([a, b])]


def _common_fractions(results: pd.DataFrame, a: str, b: str) -> list[float]:
    return sorted(set.intersection(*(set(results.loc[results["variant"] == v, "fraction"]) for v in (a, b))))


def corrected(table: pd.DataFrame, n_tests: int) -> pd.DataFrame:
    """A table of tests with `p_bonferroni` and `p_holm` beside its `p`."""
    import pingouin as pg

    p = np.ones(max(n_tests, len(table)))  # a test that could not be computed still counts towards the correction
    p[: len(table)] = table["p"].fillna(1)
    for method in ("bonferroni", "holm"):
        corrected = pg.multicomp(p, method=method)[1][: len(table)] if len(table) else np.nan
        table[f"p_{method}"] = np.where(table["p"].isna(), np.nan, corrected)
    return table


_COLUMNS = (
    "n_subjects", "n_seeds", "n", "mean_a", "mean_b", "difference", "low", "high", "better", "t", "dof", "p",
    "p_permutation", "bf10", "d", "d_low", "d_high", "d_t_low", "d_t_high",
)  # fmt: skip


def compare_cells(results: pd.DataFrame, a: tuple[str, float], b: tuple[str, float]) -> dict[str, float]:
    """One paired test between any two (variant, fraction), as `compare` describes it; `n_subjects` is that of `a`.

    Raises
    ------
    ValueError
        If one is absent, they have no seed in common, or the two were not tested on the same subjects.
    """
    import pingouin as pg

    results, measure = fixed_split(results)
    cells = [results[(results["variant"] == v) & (results["fraction"] == f)] for v, f in (a, b)]
    if absent := [f"{v} at {100 * f:g}%" for (v, f), one in zip((a, b), cells, strict=True) if one.empty]:
        raise ValueError(f"no results of {' and '.join(absent)}")
    seeds = set(cells[0]["seed"]) & set(cells[1]["seed"])
    chosen = [one[one["seed"].isin(seeds)].groupby("subject")[["score", "n_subjects"]].mean() for one in cells]
    if not seeds:
        raise ValueError(f"{a[0]} at {100 * a[1]:g}% and {b[0]} at {100 * b[1]:g}% have no seed in common")
    if unpaired := sorted(set(chosen[0].index) ^ set(chosen[1].index)):
        raise ValueError(f"{a[0]} and {b[0]} were not tested on the same subjects: {unpaired}")
    first, second = (one["score"].to_numpy() for one in chosen)
    difference = first - second
    n = len(difference)
    t, p = _t_test(difference)
    low, high = t_interval(difference, 0.95)
    row = {
        "n_subjects": int(chosen[0]["n_subjects"].iloc[0]), "n_seeds": len(seeds), "n": n,
        "mean_a": first.mean(), "mean_b": second.mean(), "difference": difference.mean(), "low": low, "high": high,
        "better": is_better(measure, difference.mean()), "t": t, "dof": n - 1, "p": p,
    }  # fmt: skip
    if np.isnan(t):
        return {name: row.get(name, np.nan) for name in _COLUMNS}
    signs = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=_RESAMPLES, vectorized=True, rng=0
    )
    d_low, d_high = _bootstrap_d(difference)
    d_t_low, d_t_high = _noncentral_d(t, n)
    return row | {
        "p_permutation": float(signs.pvalue), "bf10": float(pg.bayesfactor_ttest(t, n, paired=True)),
        "d": t / np.sqrt(n), "d_low": d_low, "d_high": d_high, "d_t_low": d_t_low, "d_t_high": d_t_high,
    }  # fmt: skip


def compare_changes(results: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Paired tests of every variant with changed settings against itself without, over the same held-out subjects.

    Parameters
    ----------
    results : rows of one fraction, with a column `change`, empty where nothing is changed; changes without their
        counterpart, or which leave every score as it was, are left out

    Returns
    -------
    `variant, change`, the columns of `compare_cells` (differences are changed − unchanged), `p_bonferroni`, `p_holm`
    over all rows, `differ` (p_holm < alpha)
    """
    rows, order = [], list(dict.fromkeys(results["change"]))
    for variant, own in results.groupby("variant", sort=False):
        cells = own.assign(variant=own["change"])
        there = set(own["change"])
        for change in order if "" in there else []:
            if change and change in there:
                fraction = float(own["fraction"].iloc[0])
                found = compare_cells(cells, (change, fraction), ("", fraction))
                if found["difference"] or found["low"]:  # else the change does not concern this decoder
                    rows.append({"variant": variant, "change": change, **found})
    table = corrected(pd.DataFrame(rows, columns=["variant", "change", *_COLUMNS]), len(rows))
    return table.assign(differ=table["p_holm"] < alpha)


def compare_folds(results: pd.DataFrame, a: str = "pretrained", b: str = "scratch", n_tests: int = 0) -> pd.DataFrame:
    """Corrected resampled t-tests of two variants over the folds of a cross-validation, one per fraction.

    Folds share training subjects, so a t-test over them finds differences where there are none. Nadeau & Bengio (2003)
    replace 1/J by 1/J + n_test/n_train, for the J differences of repeats × folds (Bouckaert & Frank 2004). This assumes
    training on all subjects that are not held out; with a fraction of them, folds share less and the test is
    conservative.

    Parameters
    ----------
    results : rows with a `fold` from 1; per fold, the seeds that both variants have are averaged per subject, then
        subjects
    a, b : the variants; differences are a − b
    n_tests : number of planned tests, if more than these

    Returns
    -------
    `fraction, n_subjects, n_folds, difference, low, high` (95%), `better, t, dof, p, p_bonferroni, p_holm`; n_subjects
    and n_test/n_train are means over folds. With one fold, or where all differences are equal, there is no test: NaN.

    Raises
    ------
    ValueError
        If a variant is absent or lacks a fold, or in a fold the two share no seed or have different test subjects.
    """
    measure, folds = _measure(results), _of_variants(results, a, b)
    folds = folds[folds["fold"] > 0]
    folds = folds[folds["fraction"].isin(_common_fractions(folds, a, b))]
    if folds.empty:
        raise ValueError(f"{a} and {b} have no results of folds at the same fraction; `compare` is for the fixed split")
    return _of_folds(_fold_differences(folds, a, b), measure, n_tests)


def compare_fold_values(values: pd.DataFrame, a: str, b: str, n_tests: int = 0) -> pd.DataFrame:
    """As `compare_folds`, of a measure of a group, such as the AUC of each fold.

    Parameters
    ----------
    values : `variant, fraction, fold, seed, measure, value, n_subjects, n_test`, one measure; seeds are averaged per
        fold. Folds without a value (a class is absent) of a or b are left out

    Raises
    ------
    ValueError
        If a variant is absent, or the two share no fold at any fraction.
    """
    measure, rows = _measure(values), _of_variants(values, a, b)
    numbers = ["value", "n_subjects", "n_test"]
    of = [rows[rows["variant"] == v].groupby(["fraction", "fold"])[numbers].mean().dropna() for v in (a, b)]
    both = of[0].join(of[1]["value"].rename("value_b"), how="inner")
    if both.empty:
        raise ValueError(f"{a} and {b} have no fold in common at the same fraction")
    table = pd.DataFrame(
        {"difference": both["value"] - both["value_b"], "n_test": both["n_test"], "n_train": both["n_subjects"]}
    )
    return _of_folds(table, measure, n_tests)


def fold_intervals(values: pd.DataFrame) -> pd.DataFrame:
    """Means over folds of a measure, with 95% intervals that count what folds share (see `compare_folds`).

    Intervals end where the measure does.

    Parameters
    ----------
    values : as in `compare_fold_values`

    Returns
    -------
    `variant, fraction, n_subjects, n_folds, mean, low, high`
    """
    per_fold = values.groupby(["variant", "fraction", "fold"], sort=False)[["value", "n_subjects", "n_test"]].mean()
    (lowest, highest), rows = _measure(values).bounds, []
    for (variant, fraction), of_fold in per_fold.dropna().groupby(["variant", "fraction"], sort=False):
        n_train = of_fold["n_subjects"].mean()
        error = _resampled_error(of_fold["value"].to_numpy(), of_fold["n_test"].mean() / n_train)
        mean, reach = of_fold["value"].mean(), stats.t.ppf(0.975, max(1, len(of_fold) - 1)) * error
        rows.append(
            {"variant": variant, "fraction": fraction, "n_subjects": round(n_train), "n_folds": len(of_fold),
             "mean": mean, "low": np.maximum(mean - reach, lowest), "high": np.minimum(mean + reach, highest)}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=["variant", "fraction", "n_subjects", "n_folds", "mean", "low", "high"])


def _resampled_error(values: np.ndarray, test_to_train: float) -> float:
    """Standard error of a mean over folds that share training units (Nadeau & Bengio 2003); NaN for one fold."""
    n = len(values)
    return float(np.sqrt((1 / n + test_to_train) * values.var(ddof=1))) if n > 1 else np.nan


def _of_folds(folds: pd.DataFrame, measure: Measure, n_tests: int) -> pd.DataFrame:
    """Corrected resampled t-tests, one per fraction, of `difference, n_test, n_train` of each (fraction, fold)."""
    rows = []
    for fraction, of_fold in folds.groupby("fraction"):
        difference, n, n_train = of_fold["difference"].to_numpy(), len(of_fold), of_fold["n_train"].mean()
        error, mean = _resampled_error(difference, of_fold["n_test"].mean() / n_train), difference.mean()
        reach = stats.t.ppf(0.975, n - 1) * error if n > 1 else np.nan
        t = mean / error if n > 1 and np.ptp(difference) > 1e-12 else np.nan
        rows.append(
            {"fraction": fraction, "n_subjects": round(n_train), "n_folds": n, "difference": mean, "low": mean - reach,
             "high": mean + reach, "better": is_better(measure, mean), "t": t, "dof": n - 1,
             "p": 2 * stats.t.sf(abs(t), n - 1)}
        )  # fmt: skip
    return corrected(pd.DataFrame(rows), n_tests)


def _fold_differences(folds: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Per (fraction, fold): mean `difference` of a − b over its subjects, their number `n_test`, and `n_train`."""
    cell = ["fraction", "fold"]
    shared = _of_shared_seeds(folds, [*cell, "task"])
    means = [shared[shared["variant"] == v].groupby([*cell, "subject"])[["score", "n_subjects"]].mean() for v in (a, b)]
    whole = set.intersection(*({(fraction, fold) for fraction, fold, _ in one.index} for one in means))
    if alone := sorted(set(folds.set_index(cell).index) - whole):
        named = ", ".join(f"fold {fold} at {100 * fraction:g}%" for fraction, fold in alone)
        raise ValueError(f"{a} and {b} must have a seed in common in every fold; they have none in {named}")
    if unpaired := sorted(set(means[0].index) ^ set(means[1].index)):
        named = ", ".join(f"{subject} (fold {fold} at {100 * fraction:g}%)" for fraction, fold, subject in unpaired)
        raise ValueError(f"{a} and {b} were not tested on the same subjects: {named}")
    difference = (means[0]["score"] - means[1]["score"]).groupby(cell)
    n_train = means[0]["n_subjects"].groupby(cell).first()
    return pd.DataFrame({"difference": difference.mean(), "n_test": difference.size(), "n_train": n_train})


def subjects_saved(
    results: pd.DataFrame, a: str = "pretrained", b: str = "scratch", n_resamples: int = 2000
) -> pd.DataFrame:
    """The number of training subjects with which `b` is as good as `a` with n: the worth of pre-training, in subjects.

    The mean score of `b` is interpolated linearly in log n between the sizes of the sweep; the smallest size as good
    as `a` counts. Intervals are 95% percentile bootstraps over the held-out subjects and, where every size has the same
    seeds, over these, drawn alike for both variants.

    Returns
    -------
    `n_subjects, score, equivalent, low, high, saved, at_most`: `equivalent` is the number of subjects of `b`, infinite
    if `b` is never as good. If the smallest size of `b` is already as good, it is an upper bound and `at_most` is true.
    """
    of_both, random = balanced(results[results["variant"].isin([a, b])]), np.random.default_rng(0)
    means = of_both.groupby(["variant", "n_subjects", "subject", "seed"])["score"].mean().unstack("seed")
    if means.isna().any(axis=None):  # sizes with seeds of their own: these are averaged
        means = means.mean(axis=1).to_frame()
    n, n_seeds = means.index.get_level_values("subject").nunique(), means.shape[1]
    curves = [means.loc[v].unstack("subject") for v in (a, b)]  # a row per size
    if unpaired := sorted(set(curves[0].columns) ^ set(curves[1].columns)):
        raise ValueError(f"{a} and {b} were not tested on the same subjects: {[s for _, s in unpaired]}")
    sizes = curves[1].index.to_numpy(float)
    subjects, seeds = (
        np.vstack([np.arange(size), random.integers(0, size, (n_resamples, size))])  # the first is the sample itself
        for size in (n, n_seeds)
    )
    up = 1 if _measure(results).higher_is_better else -1
    drawn = seeds[:, :, None], subjects[:, None, :]
    goals, reached = (
        up * curve.to_numpy().reshape(len(curve), n_seeds, n)[:, *drawn].mean(axis=(2, 3)) for curve in curves
    )  # (sizes, resamples)
    rows = []
    for n_subjects, goal in zip(curves[0].index, goals, strict=True):
        equivalent = np.array([_first_reached(y, g, sizes) for y, g in zip(reached.T, goal, strict=True)])
        low, high = np.quantile(equivalent[1:], [0.025, 0.975], method="inverted_cdf")
        saved, at_most = equivalent[0] - n_subjects, reached[0, 0] >= goal[0]
        rows.append((n_subjects, up * goal[0], equivalent[0], low, high, saved, at_most))
    return pd.DataFrame(rows, columns=["n_subjects", "score", "equivalent", "low", "high", "saved", "at_most"])


def _first_reached(curve: np.ndarray, goal: float, sizes: np.ndarray) -> float:
    """The smallest size at which a curve, linear in log size, reaches the goal."""
    above = np.flatnonzero(curve >= goal)
    if len(above) == 0:
        return np.inf
    i = above[0]
    if i == 0:
        return float(sizes[0])
    share = (goal - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(np.exp(np.log(sizes[i - 1]) + share * np.log(sizes[i] / sizes[i - 1])))


def _t_test(difference: np.ndarray) -> tuple[float, float]:
    """t and two-sided p of a mean against zero; NaN where there is no variance."""
    import pingouin as pg

    if len(difference) < 2 or np.ptp(difference) < 1e-12:
        return np.nan, np.nan
    test = pg.ttest(difference, 0.0)
    return float(test["T"].iloc[0]), float(test["p_val"].iloc[0])


def t_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of a mean by Student's t; NaN for fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _bootstrap_d(difference: np.ndarray) -> tuple[float, float]:
    def d(sample: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sample.mean(axis=axis) / sample.std(axis=axis, ddof=1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with two or three subjects some resamples have no variance: NaN
        interval = stats.bootstrap((difference,), d, n_resamples=_RESAMPLES, method="BCa", rng=0).confidence_interval
    return float(interval.low), float(interval.high)


def _noncentral_d(t: float, n: int) -> tuple[float, float]:
    """The d whose noncentral t distributions have t at their 97.5th and 2.5th percentiles."""

    def excess(centre: float, share: float) -> float:
        below = stats.nct.cdf(t, n - 1, centre)
        return float(centre < t if np.isnan(below) else below) - share  # NaN: too far out to compute

    scale = max(1.0, abs(t) / 1e3)  # from there on d is proportional to t, and the distribution hard to compute
    t /= scale
    reach = 10 * np.sqrt(1 + t**2 / (2 * (n - 1)))
    low, high = (optimize.brentq(excess, t - reach, t + reach, args=(share,)) for share in (0.975, 0.025))
    return low * scale / np.sqrt(n), high * scale / np.sqrt(n)
