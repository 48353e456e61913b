"""The papers' claims, one by one, beside this run: what is stated, what is found here, and whether it holds.

A claim has a rule by which it holds, whatever this run finds. Shi et al. and Malik & Bzdok are known from their
abstracts. For Thomas, Müller & Samek see `report.paper`.
"""

from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.analysis.measures import MEASURES
from deeplight_core.config import Profile
from deeplight_core.report.findings.autoencoder import (
    FEWER,
    difference_of_errors,
    more_weights,
    penalty_of_codes,
    separation_gain,
)
from deeplight_core.report.findings.cells import change, counted, interval, listed, short_title
from deeplight_core.report.findings.contrast import (
    beside_whole_brain,
    beyond_shortcut,
    converges_earlier,
    first_converged,
)
from deeplight_core.report.findings.images import features_leads, is_of_features, listed_leads, photographs_gains
from deeplight_core.report.findings.transfer import decoders_tests, fault_tests, main_values, transfer_title
from deeplight_core.report.paper import VERDICTS, Row, rows_table
from deeplight_core.routes import ROUTES

__all__ = ["atanaszov_claims", "claims_note", "claims_table", "malik_claims", "shi_claims"]

_MARKS = dict(zip(VERDICTS.values(), ("✓", "✗", "○"), strict=True))


def claims_table(claims: pd.DataFrame, origin: str) -> Styler:
    """A paper's claims and numbers beside this run's (`paper.rows_table`), whose data are of an origin.

    A verdict has a mark, a word and a class of its own (`holds`, `fails`, `untested`), which the book colours.
    """
    shown = claims.rename(
        columns={"quantity": "claim or number", "this run": f"this run ({origin})", "claim": "holds if"}
    )
    shown["verdict"] = [f"{_MARKS[verdict]} {verdict}" if verdict else "" for verdict in claims["verdict"]]
    classes = pd.DataFrame("", shown.index, shown.columns)
    names = dict(zip(VERDICTS.values(), ("holds", "fails", "untested"), strict=True))
    classes["verdict"] = claims["verdict"].map(names).fillna("")
    return shown.style.hide(axis="index").set_table_attributes('class="wrapped"').set_td_classes(classes)


def claims_note(profile: Profile, claims: pd.DataFrame) -> str:
    """How many of a paper's claims hold, and which do not (`paper.rows_table`)."""
    which = {holds: claims[claims["verdict"] == verdict].to_dict("records") for holds, verdict in VERDICTS.items()}
    n = len(which[True]) + len(which[False])
    untested = f"{counted(len(which[None]), 'claim')} cannot be tested here." if which[None] else ""
    if n == 0:
        return f"**No claim can be tested yet.** {untested}".strip()
    said = [f"**Claims that hold in this run: {len(which[True])} of {n}.**", untested]
    if which[False]:
        said.append(f"Not reproduced (✗): {'; '.join(row['quantity'] for row in which[False])}.")
    if len(profile.sweep.seeds) == 1:
        said.append("Trainings were made with one seed: no interval covers what another seed would change.")
    if profile.simulated:
        said.append(
            "A claim that holds on simulated data shows that the pipeline can find the effect where it was planted, "
            "not that brains have it."
        )
    return " ".join(filter(None, said))


def _lacking(what: str) -> str:
    return f"{Row.ours}: {what}"


# ---- Atanaszov & Ritter (2019)


def atanaszov_claims(
    weights: dict[str, tuple[int, int]],
    errors: dict[str, pd.DataFrame],
    codes: tuple[dict[str, np.ndarray], dict[str, float]],
    separations: dict[str, pd.DataFrame],
    transfers: dict[str, Profile],
    values: pd.DataFrame,
    faults: tuple[Profile, pd.DataFrame],
) -> pd.DataFrame:
    """Claims and conjectures of Atanaszov & Ritter (2019), as `paper.rows_table` has them.

    Parameters
    ----------
    weights : see `architectures_table`
    errors : see `difference_of_errors`
    codes : features and errors, see `codes_table`
    separations : see `separation_note`
    transfers, values : profiles, and `collect.transfer_values` of them
    faults : the profile in which they are planted, and `collect.transfer_values` of the control
    """
    rows = [*_autoencoder_rows(weights, errors, codes), _multitask_row(separations)]
    rows += [_convergence_row(own, values[values["transfer"] == name]) for name, own in transfers.items()
             if "cae" in own.sweep.variants]  # fmt: skip
    lead = "significantly better than from scratch in {} comparison (corrected resampled t-test, Bonferroni)"
    rows += [
        _start_row("3.2", "autoencoding gives no useful start for the other cohorts", "most likely none",
                   lead.format("no"), values, "cae", "cae-scratch", expected=False),
        _start_row("3.2, conjecture", "an auxiliary target makes the start better than random", "not tried",
                   lead.format("at least one"), values, "cae-multitask", "cae-scratch"),
        _start_row("3.2, conjecture", "a variational autoencoder makes a better start", "not tried",
                   lead.format("at least one").replace("from scratch", "after plain autoencoding"),
                   values[values["variant"].isin(["cae", "cae-variational"])] if len(values) else values,
                   "cae-variational", "cae"),
        _rates_row(*faults),
        Row("3.2, conjecture", "a larger, more general source, such as UK Biobank, helps", "not tried",
            "no such data here", "better than from this source"),
    ]  # fmt: skip
    return rows_table(rows)


def _autoencoder_rows(
    weights: dict[str, tuple[int, int]],
    errors: dict[str, pd.DataFrame],
    codes: tuple[dict[str, np.ndarray], dict[str, float]],
) -> list[Row]:
    both = _lacking("both autoencoders are needed")
    more, found = more_weights(weights), penalty_of_codes(*codes)
    mean, low, high = difference_of_errors(errors) if len(errors) > 1 else (np.nan,) * 3
    apart = f"difference of held-out errors {interval(mean, low, high, '+.2g')}"
    sparse, room = [_lacking("two widths of the code, each with and without a penalty, are needed")] * 2
    if found:
        sparse = f"{found.silent_with:.0%} of the units are silent; {found.silent_without:.0%} without"
        gains = [f"{-gain:+.4f} with {width} channels" for width, gain in found.gain.items()]
        room = f"best penalty changes the held-out error by {listed(gains)}"
    fewer = more <= -FEWER / 2
    return [
        Row("2.2.2", "the strided residual autoencoder is smaller", f"around {FEWER:.0%} fewer weights",
            both if np.isnan(more) else f"{more:+.0%} weights", f"at least half of the stated reduction "
            f"({FEWER / 2:.0%})", None if np.isnan(more) else fewer),
        Row("2.2.2", "the residual autoencoder reconstructs as well as the convolutional one", "equally well",
            both if np.isnan(mean) else apart, "the difference's 95% interval over people includes 0",
            None if np.isnan(low) else low <= 0 <= high),
        Row("3.1.1, Fig. 3.1", "an L1 penalty on the weights makes the code sparse", "a sparse histogram", sparse,
            "more units are silent with the penalty (one training each, no interval)",
            found and found.silent_with > found.silent_without),
        Row("3.1.1", "an L1 penalty makes room for a larger code", "stated, no numbers", room,
            "of all codes, a wide one with a penalty has the lowest held-out error (no interval)",
            found and found.room),
    ]  # fmt: skip


def _multitask_row(separations: dict[str, pd.DataFrame]) -> Row:
    titles = [ROUTES[name].title for name in ("autoencoder", "multitask")]
    ours, holds = _lacking("autoencoders with and without auxiliary targets are needed"), None
    if {*titles} <= {*separations}:
        mean, low, high = separation_gain(*(separations[title] for title in titles))
        ours = f"silhouette of held-out people {interval(mean, low, high, '+.2f')}"
        holds = None if np.isnan(low) else low > 0
        if np.isnan(mean):
            ours = "held-out people are too few, or of one class"
    return Row("3.1.2, Fig. 3.2", "an auxiliary cross-entropy separates classes in the code", "better, by eye", ours,
               "the gain's 95% interval over held-out people lies above 0", holds)  # fmt: skip


def _convergence_row(profile: Profile, values: pd.DataFrame) -> Row:
    ours, holds = _lacking("the decoder is not trained"), None
    main = main_values(values) if len(values) else values
    own = main[main["variant"] == "cae"] if len(main) else main
    if len(own):
        measure = MEASURES[own["measure"].iloc[0]]
        last = statistics.fold_intervals(own).sort_values("fraction").iloc[-1]
        ours = f"{measure.title} {interval(last['mean'], last['low'], last['high'], '.2f')}"
        holds = None if np.isnan(last["low"]) else bool(last["low"] <= float(measure.guess or 0))
    return Row("3.1.3", f"fine-tuning does not converge: {transfer_title(profile)}", "no convergence", ours,
               "no better than chance: the 95% interval over folds reaches it (all people)", holds)  # fmt: skip


def _start_row(
    where: str, quantity: str, paper: str, rule: str, values: pd.DataFrame, variant: str, against: str,
    expected: bool = True,
) -> Row:  # fmt: skip
    """A row on whether one start is significantly better than another in any comparison; `expected` by the claim."""
    groups = [own for _, own in values.groupby("transfer", sort=False)]
    found = [tests for own in groups if len(tests := decoders_tests(main_values(own), against))]
    tests = pd.concat(found) if found else pd.DataFrame(columns=["variant"])
    tests = tests[tests["variant"] == variant]
    tests = tests[tests["p"].notna()] if len(tests) else tests
    if tests.empty:
        return Row(where, quantity, paper, _lacking(f"{short_title(variant)} is not compared"), rule)
    n = int((tests["better"] & (tests["p_bonferroni"] < 0.05)).sum())
    return Row(where, quantity, paper, f"significantly better in {n} of {len(tests)}", rule, (n > 0) == expected)


def _rates_row(profile: Profile, values: pd.DataFrame) -> Row:
    tests = fault_tests(profile, values) if len(values) else pd.DataFrame(columns=["fault"])
    tests = tests[tests["fault"] == "discriminative"]
    ours, holds = _lacking("the remedy is not tried"), None
    if len(tests):
        test = tests.iloc[0]
        ours = f"AUC {interval(test['difference'], test['low'], test['high'], '+.2f')}"
        holds = None if np.isnan(test["p"]) else bool(test["better"] and test["p_bonferroni"] < 0.05)
    return Row("3.2, conjecture", "other learning rates in other layers speed up adaptation", "not tried", ours,
               "significantly better than one rate (corrected resampled t-test, Bonferroni)", holds)  # fmt: skip


# ---- Shi et al. (2023)


def shi_claims(
    told: pd.DataFrame,
    found: pd.DataFrame,
    raw: pd.DataFrame,
    raw_gains: pd.DataFrame,
    recalls: dict[str, pd.DataFrame],
    networks: pd.DataFrame,
) -> pd.DataFrame:
    """Claims of the abstract of Shi et al. (2023), as `paper.rows_table` has them.

    Parameters
    ----------
    told : of `contrasts.contrast_scores`
    found, raw : of `convergence`, for the sweep and for data as a scanner gives them
    raw_gains : of `contrast_gains`, for the latter
    recalls : see `recalls_table`
    networks : see `networks_table`
    """
    beyond = beyond_shortcut(told) if len(told) else (np.nan,) * 3
    ours = _lacking("the pre-training is not finished")
    rows = [
        Row("methods", "contrast learns the patterns of fMRI in space and time", "stated, no number",
            f"{interval(*beyond, '+.1%')} of held-out neighbours beyond the shortcut" if len(told) else ours,
            "it finds more than a run's mean and slope do: the 95% interval lies above 0",
            None if np.isnan(beyond[1]) else beyond[1] > 0),
        _earlier_row(found), *_raw_rows(raw, raw_gains), _recalls_row(recalls),
    ]  # fmt: skip
    return rows_table([*rows, *_network_rows(networks, found)])


def _earlier_row(found: pd.DataFrame) -> Row:
    earlier = converges_earlier(found)
    ours = _lacking("decoders pre-trained by contrast and from scratch are needed at the same sizes")
    if earlier is not None:
        first = first_converged(found)
        said = [counted(n, "subject") if np.isfinite(n := first[v]) else "never" for v in ("contrast", "scratch")]
        ours = f"{said[0]} against {said[1]}, of {found['n_subjects'].max():.0f} at most"
    return Row("results", "after contrast, a decoder of other tasks converges with fewer subjects than from scratch",
               "12 against 100 subjects", ours,
               "it converges with fewer; converged: the 95% interval lies above the best constant answer, and the mean "
               "is within two points of that with the most subjects", earlier)  # fmt: skip


def _raw_rows(raw: pd.DataFrame, gains: pd.DataFrame) -> list[Row]:
    own = raw.sort_values("n_subjects").drop_duplicates("variant", keep="last").set_index("variant")
    said: dict[str, str] = {}
    above: dict[str, bool | None] = {}
    for variant in ("contrast", "scratch"):
        said[variant], above[variant] = _lacking("no such decoder of unpreprocessed data"), None
        if variant in own.index:
            row: Any = own.loc[variant]
            said[variant] = f"{interval(row['mean'], row['low'], row['high'])}, {row['n_subjects']:.0f} people"
            above[variant] = None if np.isnan(row["low"]) else bool(row["low"] > row["constant"])
    lead = gains[(gains["a"] == "contrast") & (gains["b"] == "scratch")].tail(1)  # with the most people, as above
    fails = None
    if above["scratch"] is not None and len(lead) and not np.isnan(lead["low"].iloc[0]):
        fails = not above["scratch"] and bool(lead["low"].iloc[0] > 0)
        said["scratch"] += f"; contrast leads by {change(lead.iloc[0])}"
    constant = "the best constant answer" + (f" ({raw['constant'].iloc[0]:.1%})" if len(raw) else "")
    return [
        Row("results", "after contrast, a decoder of unpreprocessed data works", "80.2 ± 4.7% (30 people)",
            said["contrast"], f"the 95% interval lies above {constant}", above["contrast"]),
        Row("results", "from scratch, a decoder of unpreprocessed data does not work", "does not converge",
            said["scratch"],
            f"the 95% interval does not lie above {constant}, and that of contrast's lead lies above 0", fails),
    ]  # fmt: skip


def _recalls_row(recalls: dict[str, pd.DataFrame]) -> Row:
    ours, holds = _lacking("no decoder of many tasks"), None
    if "contrast" in recalls:
        above = recalls["contrast"]["above"]
        ours, holds = f"{int(above.sum())} of {len(above)}", bool(above.mean() >= 11 / 13)
    return Row("results", "after contrast, most tasks of a battery are classified", "11 of 13", ours,
               "at least 11 in 13 are recalled above chance (t-test over people, Holm over tasks)", holds)  # fmt: skip


def _network_rows(networks: pd.DataFrame, found: pd.DataFrame) -> list[Row]:
    beside, constant = beside_whole_brain(networks), found["constant"].iloc[0] if len(found) else np.nan
    lacking = _lacking("no decoder of a single network" if beside.empty else "none of the networks has this name")
    good: tuple[str, bool | None] = (lacking, None)
    fails = good
    for network, row in beside.iterrows():
        if "visual" in str(network).lower():
            low, high = row["difference_low"], row["difference_high"]
            said = f"{row['mean']:.1%}, {interval(row['difference'], low, high, '+.1%')} from the whole brain"
            good = said, None if np.isnan(high) else bool(high >= 0)
        if "limbic" in str(network).lower():
            untested = np.isnan(row["low"]) or np.isnan(constant)
            fails = interval(row["mean"], row["low"], row["high"]), None if untested else bool(row["low"] <= constant)
    return [
        Row("results", "the visual network alone is as good as the whole brain", "as good (13 tasks)", good[0],
            "no difference can be shown: its 95% interval reaches 0", good[1]),
        Row("results", "the limbic network alone fails", "almost, in all of 13 tasks", fails[0],
            "the 95% interval does not lie above the best constant answer", fails[1]),
    ]  # fmt: skip


# ---- Malik & Bzdok (2022)

_SEVERAL = 2  # phenotypes


def malik_claims(values: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Claims of the abstract of Malik & Bzdok (2022), as `paper.rows_table` has them.

    Where ResNet-18 is fine-tuned, as in the paper, photographs' claims are those of this network.

    Parameters
    ----------
    values : as `collect.fold_values` gives them
    controls : the same for the control `conditioning`
    """
    there = {*values["variant"]}
    network = "resnet18" if {"resnet18", "resnet18-scratch"} <= there else "images"
    rows = [
        _several_row("a network that learnt from photographs is better on several phenotypes", values, network),
        _several_row("a 3D network that learnt from video is better on several phenotypes", values, "video"),
    ]
    rows += [_phenotype_row(target, values, network) for target in ("sex", "age")]
    leads = features_leads(controls)
    features = is_of_features(leads)
    most = f"at most {values['n_subjects'].max():.0f} people to train on" if len(values) else _lacking("no results")
    return rows_table([
        *rows, _small_row(values, network),
        Row("abstract", "what helps was learnt from the real world", "stated, no number",
            _lacking("its controls are not run") if features is None else f"{listed_leads(leads)}, over all phenotypes",
            "frozen features lead those of random weights, of shuffled ones and of statistics alone (95% intervals "
            "above 0), and the last two leads are more than half of the first",
            features),
        Row("abstract", "all this in around 40,000 participants of UK Biobank", "40,000 people", most,
            "UK Biobank is decoded (profile images-paper)"),
    ])  # fmt: skip


def _tested_gains(values: pd.DataFrame, network: str) -> pd.DataFrame:
    """The comparisons (`photographs_gains`) that could be tested."""
    gains = photographs_gains(values, network)
    return gains[gains["p"].notna()]


def _several_row(quantity: str, values: pd.DataFrame, network: str) -> Row:
    gains = _tested_gains(values, network)
    names = list(dict.fromkeys(gains.loc[gains["helped"].astype(bool), "target"]))
    ours = _lacking("no such network is compared, over folds, with the same from scratch")
    if len(gains):
        n, which = gains["target"].nunique(), f" ({listed(names)})" if names else ""
        ours = f"{len(names)} of {n}{which}; {short_title(network)}"
    return Row("abstract", quantity, "several of six", ours,
               f"significantly better than from scratch on at least {_SEVERAL}, with any number of people (corrected "
               "resampled t-test, Bonferroni)", len(names) >= _SEVERAL if len(gains) else None)  # fmt: skip


def _lead(row: Any) -> str:
    return f"{interval(row['difference'], row['low'], row['high'], '+.2f')} with {row['n_subjects']:.0f} people"


def _phenotype_row(target: str, values: pd.DataFrame, network: str) -> Row:
    gains = _tested_gains(values, network)
    own = gains[gains["target"] == target]
    ours, holds = _lacking(f"{target} is not compared"), None
    if len(own):
        ours, holds = "; ".join(_lead(row) for row in own.to_dict("records")), bool(own["helped"].any())
    return Row("abstract", f"photographs help especially on {target}", "among the best", ours,
               "significantly better than from scratch, with any number of people", holds)  # fmt: skip


def _small_row(values: pd.DataFrame, network: str) -> Row:
    """The lead with the fewest people minus that with all, in every fold the mean over phenotypes."""
    ours, holds = _lacking("two numbers of people are needed, in the same folds"), None
    main = main_values(values[values["variant"].isin([network, f"{network}-scratch"])])
    cell = ["fraction", "fold"]
    wide = main.pivot_table("value", [*cell, "target"], "variant").dropna()
    if wide.shape[1] == 2 and wide.index.unique("fraction").size > 1:
        leads = (wide[network] - wide[f"{network}-scratch"]).groupby(cell).mean().rename("value").reset_index()
        sizes = main.groupby(cell)[["n_subjects", "n_test"]].first().reset_index()
        few, most = leads["fraction"].min(), leads["fraction"].max()
        ends = leads.merge(sizes).assign(measure="auc", seed=1)  # whose difference has a direction, as a lead's has
        ends = ends[ends["fraction"].isin([few, most])]
        ends = ends.assign(variant=np.where(ends["fraction"] == few, "few", "most"), fraction=1.0)
        test = statistics.compare_fold_values(ends, "few", "most").iloc[0]
        n = ends.groupby("variant")["n_subjects"].mean()
        ours = (
            f"{interval(test['difference'], test['low'], test['high'], '+.2f')} more with {n['few']:.0f} people than "
        )
        ours += f"with {n['most']:.0f}"
        holds = None if np.isnan(test["p"]) else bool(test["low"] > 0)
    return Row("abstract", "photographs help especially with small samples", "stated, no number", ours,
               "the mean lead over all phenotypes is larger with the fewest people than with all: the difference's 95% "
               "interval lies above 0", holds)  # fmt: skip
