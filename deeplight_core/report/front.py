"""The book's front: what it has found, as one figure and a few sentences."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from deeplight_core.analysis import crossed, statistics
from deeplight_core.config import Profile, load_profile
from deeplight_core.report import findings, plots
from deeplight_core.report.findings import make_command
from deeplight_core.routes import VARIANTS
from deeplight_core.system.files import write_whole

__all__ = ["comparison_front", "sweep_front", "write_front"]

_DRAWN = ("deep", "probe", "logistic")
# The figure and what it shows stand side by side, on a phone one below the other.
_BESIDE = """:::::{{grid}} 1 1 2 2

::::{{grid-item}}
```{{figure}} generated/front.png
:alt: Right answers on held-out {unit}s against the number of {unit}s to train on, one line per decoder
:width: 370px

Right answers on held-out {unit}s; 95% intervals (profile `{profile}`).
```
::::

::::{{grid-item}}
{said}

{details}
::::
:::::
"""
_COMPARISON = "[The comparison](../comparison/09_comparison)"


def write_front(folder: Path, built_in: Path, comparison: Path) -> None:
    """Write `front.md` and its figure: of the comparison of ways to pre-train, else of the built-in profile's sweep.

    Parameters
    ----------
    folder : where the book includes it from
    built_in, comparison : folders of two profiles' `results.csv` and `curves.csv`; both may be missing
    """
    runs = {comparison: comparison_front, built_in: sweep_front}
    found = next((run for run in runs if (run / "results.csv").is_file()), None)
    command = make_command("comparison", comparison.name)
    missing = f"The comparison of all four ways has not been run here; `{command}` makes it."
    if found is None:
        start = make_command("reproduce", built_in.name)
        text = f"*Nothing has been run here.* `{start}` makes the first results. {missing}\n"
    else:
        profile = load_profile(found / "profile.yaml")
        plots.use_style()
        results = pd.read_csv(found / "results.csv")
        figure, said = runs[found](profile, results)
        write_whole(folder / "front.png", lambda path: figure.savefig(path, format="png"))
        plt.close(figure)
        if found == built_in and len(profile.sweep.seeds) == 1:
            repeated = found / "controls_seeds.csv"
            trainings = pd.read_csv(repeated) if repeated.is_file() else pd.DataFrame()
            said = f"{said} {findings.repeated_note(profile, trainings)}"
        if (curves := found / "curves.csv").is_file():  # not with the pages of earlier versions
            said = f"{said} {findings.not_learnt_note(profile, pd.read_csv(curves))}"
        if (published := found / "published.csv").is_file():
            ways, unit = statistics.only(results), profile.data.split_unit
            said = f"{said} {findings.tuned_note(ways, pd.read_csv(published), unit)}"
        details = f"{_COMPARISON} has the details." if found == comparison else missing
        text = _BESIDE.format(unit=profile.data.split_unit, profile=profile.name, said=said, details=details)
    (folder / "front.md").write_text(text, encoding="utf-8")


def comparison_front(profile: Profile, results: pd.DataFrame) -> tuple[Figure, str]:
    """Of a comparison: one line per way to pre-train, beside no pre-training and a linear model; and its verdict.

    Parameters
    ----------
    results : the results table
    """
    results = crossed.complete_variants(statistics.only(results))
    ways = findings.fine_tuned_ways(results)
    means = crossed.crossed_means(results)
    drawn = [v for v in ways["variant"].unique() if VARIANTS[v].learner in _DRAWN and VARIANTS[v].start != "shuffled"]
    figure = _figure(profile, means[means["variant"].isin(drawn)])
    verdict = findings.verdict_note(crossed.pairs(ways), means, profile.data.split_unit, details=False)
    return figure, f"{profile.provenance} {verdict} {findings.names_note(drawn)}".strip()


def sweep_front(profile: Profile, results: pd.DataFrame) -> tuple[Figure, str]:
    """Of one way to pre-train: a line per decoder of the sweep, and the headline."""
    volumes = statistics.only(results)
    results, folds = statistics.out_of_fold(volumes), findings.fold_tests(profile, volumes)
    tests, linear = findings.planned_tests(profile, results), findings.linear_tests(profile, results)
    figure = _figure(profile, statistics.mean_intervals(results))
    return figure, f"{findings.headline(profile, tests, folds)} {findings.linear_note(linear, details=False)}"


def _figure(profile: Profile, means: pd.DataFrame) -> Figure:
    data = profile.data
    return plots.accuracy_by_fraction(means, len(data.states("target")), data.split_unit, narrow=True)
