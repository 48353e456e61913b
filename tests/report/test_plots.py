from dataclasses import replace
from itertools import combinations

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats

from deeplight_core.analysis import statistics
from deeplight_core.analysis.measures import MEASURES
from deeplight_core.models.deeplight import DeepLight, Layer
from deeplight_core.report import plots
from deeplight_core.report.quality import Design
from deeplight_core.routes import VARIANTS

pytestmark = pytest.mark.usefixtures("no_window")

SUBJECTS = [f"s{i}" for i in range(5)]
YEARS = replace(MEASURES["absolute_error"], unit="years")


@pytest.fixture
def metrics() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        [
            (epoch, 10 * epoch, split, task, subject, variant, fraction, 0.1 * epoch + 0.01 * random.random())
            for epoch in (1, 2, 3) for split in ("train", "validation") for task in ("EMOTION", "MOTOR")
            for subject in SUBJECTS for variant in ("pretrained", "scratch") for fraction in (0.05, 1.0)
        ],
        columns=["epoch", "step", "split", "task", "subject", "variant", "fraction", "score"],
    )  # fmt: skip


@pytest.fixture
def results() -> pd.DataFrame:
    random = np.random.default_rng(1)
    return pd.DataFrame(
        [
            (variant, fraction, int(20 * fraction), 1, "WM", subject, level + 0.01 * random.random())
            for variant, level in (("pretrained", 0.7), ("scratch", 0.4))
            for fraction in (0.05, 1.0) for subject in SUBJECTS
        ],
        columns=["variant", "fraction", "n_subjects", "seed", "task", "subject", "score"],
    )  # fmt: skip


def test_task_curves_show_the_mean_of_every_task_and_the_chance_line(metrics):
    figure = plots.task_curves(metrics, 16)
    for axes, split in zip(figure.axes, ("train", "validation"), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        expected = metrics[(metrics["split"] == split) & (metrics["task"] == "MOTOR")].groupby("epoch")["score"].mean()
        assert lines["MOTOR"] == pytest.approx(expected.to_numpy())
        assert any(np.allclose(y, 1 / 16) for y in lines.values())


def test_a_band_is_the_standard_error_over_subjects_not_over_seeds(metrics):
    one = plots.fraction_curves(metrics, 4).axes[0].collections[0].get_paths()[0].vertices
    chosen = metrics.query("split == 'train' and variant == 'pretrained' and fraction == 0.05 and epoch == 3")
    errors = stats.sem(chosen.groupby("subject")["score"].mean())
    assert np.ptp(one[np.isclose(one[:, 0], 30), 1]) == pytest.approx(2 * errors)
    again = pd.concat([metrics.assign(seed=seed) for seed in (1, 2, 3)])
    assert plots.fraction_curves(again, 4).axes[0].collections[0].get_paths()[0].vertices == pytest.approx(one)


def test_task_bars_stand_at_the_means_with_a_point_per_subject(results):
    table = pd.concat([results.assign(task="MOTOR"), results.assign(task="EMOTION", score=0.25)])
    axes = plots.task_bars(table, {"EMOTION": 2, "GAMBLING": 3, "MOTOR": 5}).axes[0]  # one has no results
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.25, results["score"].mean()])
    assert [len(drawn) for drawn in points(axes)] == [20, 20]
    assert points(axes)[0][:, 1] == pytest.approx(0.25)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["EMOTION", "MOTOR"]


def points(axes: mpl.axes.Axes) -> list[np.ndarray]:
    """The points of each bar, (n, 2)."""
    return [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]


def test_a_figure_is_the_same_at_every_drawing(results):
    """Points of equal value lie side by side, and nothing is drawn by chance."""
    again = []
    for _ in range(2):
        figure = plots.task_bars(results.assign(task="MOTOR", score=0.25), {"MOTOR": 5})
        figure.canvas.draw()
        again.append(points(figure.axes[0])[0])
    assert again[0] == pytest.approx(again[1])
    assert len(np.unique(again[0][:, 0])) == 20


def test_fraction_curves_are_drawn_against_steps(metrics):
    """Two seeds of one fraction differ by two steps; the smaller fraction takes more epochs, and others."""
    seeds = pd.concat([metrics.assign(seed=seed, step=metrics["step"] + 2 * (seed - 1)) for seed in (1, 2)])
    longer = seeds.assign(epoch=seeds["epoch"] * np.where(seeds["fraction"] == 0.05, 7, 1))
    axes = plots.fraction_curves(longer, 4).axes[2]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["5%"].get_xdata() == pytest.approx([11, 21, 31])
    chosen = metrics.query("split == 'validation' and variant == 'pretrained' and fraction == 1.0")
    assert lines["100%"].get_ydata() == pytest.approx(chosen.groupby("step")["score"].mean().tolist())
    assert (axes.get_xlabel(), axes.get_xscale()) == ("steps", "log")


def test_a_task_has_the_same_colour_everywhere(metrics, results):
    line = next(x for x in plots.task_curves(metrics, 16).axes[0].get_lines() if x.get_label() == "MOTOR")
    bar = plots.task_bars(results.assign(task="MOTOR"), {"MOTOR": 5}).axes[0].patches[0]
    assert (
        mpl.colors.to_rgb(line.get_color()) == bar.get_facecolor()[:3] == mpl.colors.to_rgb(plots.TASK_COLOURS["MOTOR"])
    )


def test_accuracy_by_fraction_puts_every_variant_at_its_means(results):
    intervals = statistics.mean_intervals(results)
    axes = plots.accuracy_by_fraction(intervals, 4).axes[0]
    drawn = {c.get_label(): c.lines[0].get_xydata() for c in axes.containers}
    expected = intervals[intervals["variant"] == "scratch"].sort_values("n_subjects")[["n_subjects", "mean"]].to_numpy()
    assert drawn[VARIANTS["scratch"].title][:, 1] == pytest.approx(expected[:, 1])
    assert drawn[VARIANTS["scratch"].title][:, 0] == pytest.approx(expected[:, 0], rel=0.05)  # set side by side


def test_difference_bars_star_only_what_is_significant(results):
    comparison = statistics.compare(results)
    comparison["significant"] = [True, False]
    axes = plots.difference_bars(results, comparison).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(comparison["difference"].tolist())
    assert [text.xy[0] for text in axes.texts] == [0]
    wide = results.pivot(index=["fraction", "subject"], columns="variant", values="score")
    expected = (wide["pretrained"] - wide["scratch"])[0.05]
    assert sorted(points(axes)[0][:, 1]) == pytest.approx(sorted(expected))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5%\n(n = 1)", "100%\n(n = 20)"]


def test_difference_bars_are_over_the_seeds_that_both_have(results):
    more = pd.concat([results, results[results["variant"] == "pretrained"].assign(seed=2, score=1.0)])
    axes = plots.difference_bars(more, statistics.compare(more), title="Training").axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(
        statistics.compare(results)["difference"].tolist()
    )
    assert axes.get_title("left") == "Training"


def test_confusion_matrix_labels_rows_and_columns():
    names = pd.MultiIndex.from_tuples([("A", "x"), ("A", "y"), ("B", "x")])
    axes = plots.confusion_matrix(pd.DataFrame(np.eye(3), index=names, columns=names)).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["x", "y", "x"]
    assert np.asarray(axes.collections[0].get_array()) == pytest.approx(np.eye(3))
    assert [t.get_text() for t in axes.texts] == ["100", "0", "0", "0", "100", "0", "0", "0", "100"]
    assert [line.get_ydata()[0] for line in axes.get_lines()[::2]] == [2]  # between the tasks
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("decoded state", "true state")


def test_confusion_matrix_leaves_empty_what_has_no_volumes_and_small_shares_of_many():
    names = pd.MultiIndex.from_product([["A"], list("abcdefg")])
    shares = pd.DataFrame(np.where(np.eye(7), 0.7, 0.05), index=names, columns=names)
    shares.iloc[3] = np.nan
    figure = plots.confusion_matrix(shares, "title")
    figure.canvas.draw()
    assert [t.get_text() for t in figure.axes[0].texts if t.get_text()] == ["70"] * 6


def test_class_counts_add_up():
    index = pd.DataFrame(
        {"task": ["A"] * 5, "state": ["x", "x", "y", "y", "y"], "split": ["train", "validation"] + ["train"] * 3}
    )
    axes = plots.class_counts(index).axes[0]
    assert sum(bar.get_width() for bar in axes.patches) == 5
    assert axes.get_xlabel() == "labelled volumes (solid: training, pale: validation)"


def test_class_counts_show_the_splits_that_are_there_and_no_volume_without_a_state():
    index = pd.DataFrame({"task": "A", "state": ["x", "y", "y", ""], "split": ["test", "train", "test", "test"]})
    axes = plots.class_counts(index).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 0), (0, 1), (0, 1), (1, 1)]
    assert axes.get_xlabel() == "labelled volumes (solid: training, palest: test)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a: x", "a: y"]


def test_carpet_shows_voxels_as_rows_and_survives_constant_ones():
    series = np.random.default_rng(0).normal(size=(9, 7))
    series[:, 2] = 4.0
    panel = plots.carpet(series, series, 2.0).axes[0].images[0]
    assert panel.get_array().shape == (7, 9)
    assert np.isfinite(panel.get_array()).all()
    assert panel.get_extent()[:2] == [0, 18.0]


def test_the_timeline_has_a_row_of_blocks_for_each_task_and_ticks_below():
    blocks = pd.DataFrame({"onset": [0.0, 30.0], "duration": [20.0, 9.0], "state": ["face", "left finger"]})
    motor = Design(blocks, np.array([4.0, 6.0, 8.0]), n_volumes=30, tr_s=2.0, n_empty=1)
    rest = Design(blocks[:0], np.array([]), n_volumes=50, tr_s=2.0, n_empty=0)
    axes = plots.design_timeline({"MOTOR": motor, "REST": rest}).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 20), (30, 9)]
    assert [text.get_text() for text in axes.texts] == ["face"]  # the other block is too short for its name
    assert [line.get_xdata().tolist() for line in axes.get_lines()] == [[4, 6, 8], [0, 60], [], [0, 100]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MOTOR", "REST"]


def test_every_run_is_in_the_distribution_of_signal_to_noise_ratios():
    runs = pd.DataFrame({"split": ["train"] * 5 + ["test"] * 2, "median_tsnr": [40.0, 41, 42, 90, 91, 40, 41]})
    axes = plots.tsnr_distribution(runs).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 7
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["test", "train"]  # as they are stacked
    assert axes.get_xlabel() == "median tSNR of a run"
    one = plots.tsnr_distribution(runs[:1]).axes[0]
    assert sum(bar.get_height() for bar in one.patches) == 1


def test_fraction_curves_and_maps_draw(metrics):
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(7, 8, 9)).astype(np.float32), np.diag([8.0, 8, 8, 1]))
    mask = nib.Nifti1Image((image.get_fdata() > 0).astype(np.uint8), image.affine)
    figures = [
        plots.fraction_curves(metrics, 4),
        plots.activation_maps({"face": image}, background=image, n_cuts=2),
        plots.mask_map(mask, background=image),
    ]
    assert all(isinstance(figure, Figure) and figure.axes for figure in figures)
    curves = figures[0].axes
    assert [axes.get_title("left") for axes in curves[:2]] == ["pre-trained: training", "from scratch: training"]


def drawn(layers: list[Layer], shape: tuple[int, int, int], n_states: int) -> str:
    return " | ".join(text.get_text() for text in plots.model_diagram(layers, shape, n_states).axes[0].texts)


def test_model_diagram_shows_the_numbers_of_its_layers():
    layers = [
        Layer("a", "convolution", (11, 5, 30, 20), 1, 1, kernel=7, stride=1),
        Layer("b", "convolution", (11, 6, 10, 8), 1, 1, kernel=9, stride=3),
        Layer("c", "lstm", (2, 37), 1, 1),
        Layer("d", "linear", (4,), 1, 1),
    ]
    labels = drawn(layers, (20, 30, 11), 4)
    for number in (
        "20 × 30 × 11 voxels", "11 axial slices", "2 convolutions", "7×7 | 5 | 1", "9×9 | 6 | 3", "30×20", "10×8",
        "480 features", "37 units", "74\nfeatures", "4 states",
    ):  # fmt: skip
        assert number in labels
    axes = plots.model_diagram(layers, (20, 30, 11), 4).axes[0]
    first, second = [patch for patch in axes.patches if isinstance(patch, Rectangle)][:2]
    assert first.get_height() == pytest.approx(3 * second.get_height())
    assert first.get_width() == pytest.approx(5 / 6 * second.get_width())
    assert len(axes.collections[0].get_offsets()) == 4


@pytest.mark.parametrize("shape", [(91, 109, 91), (23, 28, 21)])
def test_labels_of_the_model_diagram_do_not_overlap(shape):
    model = DeepLight(shape, 16)
    figure = plots.model_diagram(model.layers(), shape, 16)
    figure.canvas.draw()
    extents = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    boxes = [box.padded(0, -2) for box in extents]  # of which letters leave as much free above and below
    assert len(boxes) > 40
    assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert all(figure.bbox.contains(x, y) for box in boxes for x, y in (box.min, box.max))


def test_hours_bars_write_the_hours_beside_their_bounds():
    hours = pd.DataFrame(
        {"device": ["A", "A", "B", "B"], "precision": "32-true", "part": ["pre-training", "sweep"] * 2,
         "hours": [1200.0, 30.0, 5.0, 0.52], "bound_hours": [100.0, 3.0, 1.0, 0.1]}
    )  # fmt: skip
    figure = plots.hours_bars(hours)
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1200.0, 5.0, 30.0, 0.52]
    texts = {text.get_text(): text.xy[1] for text in axes.texts}
    assert list(texts) == ["1,200 h", "5 h", "30 h", "0.52 h", "a day", "a week", "a month"]
    assert texts["1,200 h"] < texts["30 h"] < 0.5 < texts["5 h"] < texts["0.52 h"]  # the second device from 0.5 on
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [100.0, 1.0, 3.0, 0.1, 24, 168, 730]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["A\n32-true", "B\n32-true"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["pre-training", "sweep", "least by arithmetic"]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("what", ["training", "decoding"])
def test_step_bars_say_how_many_times_as_fast(what):
    table = pd.DataFrame(
        {"device": "A", "cores": 2, "mm": [8, 8, 8, 2], "batch": [24, 24, 24, 4],
         "way": ["ours", "obvious", "plain", "ours"], what: [1.87, 3.0, 6.26, 644.7],
         f"{what}_times": [3.35, 2.1, 1.0, np.nan]}
    )  # fmt: skip
    first, second = plots.step_bars(table, what).axes
    titles = ["plain PyTorch loop", "PyTorch, obvious settings", "this package"]
    texts = ["6.26  (1.0×)", "3.00  (2.1×)", "1.87  (3.4×)"]
    shown = slice(None) if what == "training" else slice(None, None, 2)  # decoding is compared with two only
    assert [label.get_text() for label in first.get_yticklabels()] == titles[shown]
    assert [text.get_text() for text in first.texts] == texts[shown]
    assert [bar.get_width() for bar in first.patches] == [6.26, 3.0, 1.87][shown]
    assert len({bar.get_facecolor() for bar in first.patches}) == 2
    assert [text.get_text() for text in second.texts] == ["645"]
    assert (first.get_title(loc="left"), second.get_xlabel()) == ("A, 2 cores: 8 mm, batches of 24", "ms per volume")


def test_loading_bars_have_a_panel_for_the_cold_and_one_for_the_warm():
    table = pd.DataFrame(
        {"device": "A", "cache": ["cold", "cold", "warm"], "way": ["npy", "by_run", "memory"],
         "volumes_per_s": [256.0, 1468.0, 1863.0], "times": [1.0, 5.73, 0.9]}
    )  # fmt: skip
    cold, warm = plots.loading_bars(table).axes
    assert [label.get_text() for label in cold.get_yticklabels()] == ["store, run by run", "a file per volume"]
    assert [text.get_text() for text in cold.texts] == ["1,468  (5.7×)", "256  (1.0×)"]
    assert [text.get_text() for text in warm.texts] == ["1,863  (0.9×)"]


def test_loss_curves_are_means_of_seeds_at_the_middle_of_their_steps():
    curves = {"32-true": [[3.0, 2.0], [2.0, 1.0]], "bf16-mixed": [[4.0, 4.0]] * 2}
    axes = plots.loss_curves(curves, steps_per_point=10).axes[0]
    assert axes.get_lines()[0].get_xydata().tolist() == [[5, 2.5], [15, 1.5]]
    assert axes.get_legend_handles_labels()[1] == ["float32, 2 seeds", "bfloat16, 2 seeds"]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(x, y) for x, y in band.tolist()} == {(5, 2), (15, 1), (15, 2), (5, 3)}


def test_hours_by_gpus_are_logarithmic():
    table = pd.DataFrame({"n_gpus": [1, 8], "pre-training": [36.0, 11.78], "sweep": [4.0, 0.52], "all": [40.0, 12.3]})
    axes = plots.hours_by_gpus(table).axes[0]
    lines = [line.get_xydata().tolist() for line in axes.get_lines()[:3]]
    assert lines == [[[1, 36], [8, 11.78]], [[1, 4], [8, 0.52]], [[1, 40], [8, 12.3]]]
    assert axes.get_legend_handles_labels()[1] == ["pre-training", "sweep", "all"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "8"]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "log", "hours")


def test_saved_subjects_mark_what_no_size_reaches():
    table = pd.DataFrame(
        {"n_subjects": [1, 3, 30], "equivalent": [9.0, 20.0, np.inf], "low": [5.0, 12.0, 25.0],
         "high": [14.0, np.inf, np.inf], "at_most": [True, False, False]}
    )  # fmt: skip
    axes = plots.saved_subjects(table).axes[0]
    points = axes.containers[0].lines[0].get_xydata()
    assert points[:2].tolist() == [[1, 9], [3, 20]]
    assert points[2, 1] > 30
    assert [text.xy[0] for text in axes.texts if text.get_text() == "▲"] == [3, 30]
    assert [text.xy[0] for text in axes.texts if text.get_text() == "▼"] == [1]
    assert "more than 30" in [text.get_text() for text in axes.texts]


def test_seed_differences_show_every_training(results):
    table = pd.concat([results.assign(seed=s, accuracy=results["score"] + 0.01 * s) for s in (1, 2, 3)])
    model = pd.DataFrame(
        {"fraction": [0.05, 1.0], "n_subjects": [1, 20], "difference": [0.3, 0.3], "low": 0.2, "high": 0.4}
    )
    axes = plots.seed_differences(table, model).axes[0]
    assert [len(drawn) for drawn in points(axes)] == [3, 3]
    wide = table.groupby(["fraction", "seed", "variant"])["score"].mean().unstack()
    expected = (wide["pretrained"] - wide["scratch"])[0.05]
    assert sorted(points(axes)[0][:, 1]) == pytest.approx(sorted(expected))


def test_transfer_map_fills_what_is_significant():
    table = pd.DataFrame(
        {"task": ["MOTOR", "MOTOR", "WM"], "fraction": [0.1, 1.0, 0.1], "n_subjects": [3, 30, 3],
         "difference": [0.2, 0.1, -0.1], "low": [0.1, -0.1, -0.2], "high": [0.3, 0.3, 0.0],
         "significant": [True, False, False]}
    )  # fmt: skip
    axes = plots.transfer_map(table).axes[0]
    marks = [c.lines[0] for c in axes.containers]
    assert [float(m.get_xdata()[0]) for m in marks] == [0.2, 0.1, -0.1]
    assert [m.get_markerfacecolor() == "white" for m in marks] == [False, True, True]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MOTOR", "WM"]


def test_every_variant_has_a_look_of_its_own(results):
    table = pd.concat([results.assign(variant=v) for v in VARIANTS if not VARIANTS[v].permuted])
    axes = plots.accuracy_by_fraction(statistics.mean_intervals(table), 4).axes[0]
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in axes.containers}
    assert len(looks) == len(axes.containers) - 1  # Glorot and He are never in one figure


# ---- measures


def ticks(axis: mpl.axis.Axis) -> str:
    """What is written at 0.5."""
    return axis.get_major_formatter()(0.5, 0)


def dashed(axes: mpl.axes.Axes) -> list[float]:
    return [
        line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--" and len(line.get_xdata()) == 2
    ]


def figures_of_values(metrics: pd.DataFrame, results: pd.DataFrame, n_states: int, measure) -> dict[str, mpl.axes.Axes]:
    intervals = statistics.mean_intervals(results)
    return {
        "task_curves": plots.task_curves(metrics, n_states, measure).axes[0],
        "task_bars": plots.task_bars(results, {"WM": n_states}, measure).axes[0],
        "fraction_curves": plots.fraction_curves(metrics, n_states, measure).axes[0],
        "accuracy_by_fraction": plots.accuracy_by_fraction(intervals, n_states, measure=measure).axes[0],
    }


@pytest.mark.parametrize("name", ["accuracy", "contrast_accuracy"])
def test_shares_are_in_percent_from_0_to_100_with_their_chance(metrics, results, name):
    chance = {"accuracy": 0.25, "contrast_accuracy": 0.5}[name]
    for figure, axes in figures_of_values(metrics, results, 4, MEASURES[name]).items():
        assert axes.get_ylim() == (0, 1), figure
        assert ticks(axes.yaxis) == "50%", figure
        assert dashed(axes) == [chance], figure
        label = "accuracy" if name == "accuracy" else "contrast accuracy"
        before = "validation " if figure == "accuracy_by_fraction" else "decoding " if name == "accuracy" else ""
        assert axes.get_ylabel() == before + label, figure


def test_errors_have_their_unit_their_own_scale_and_no_chance(metrics, results):
    metrics, results = (table.assign(score=20 * table["score"]) for table in (metrics, results))
    for figure, axes in figures_of_values(metrics, results, 0, YEARS).items():
        assert axes.get_ylim()[1] > 5, figure
        assert "%" not in ticks(axes.yaxis), figure
        assert dashed(axes) == [], figure
        assert "chance" not in [text.get_text() for text in axes.texts], figure
        before = "validation " if figure == "accuracy_by_fraction" else ""
        assert axes.get_ylabel() == before + "absolute error (years)", figure
    bars = plots.task_bars(results, {"WM": 0}, YEARS).axes[0]
    assert [text.get_text() for text in bars.texts] == [YEARS.format(results["score"].mean())]


def test_a_correlation_has_chance_at_zero_and_no_percent(metrics):
    axes = plots.task_curves(metrics, 0, MEASURES["r"]).axes[0]
    assert dashed(axes) == [0]
    assert "%" not in ticks(axes.yaxis)


def test_differences_are_in_the_unit_of_their_measure(results):
    comparison, several = statistics.compare(results), pd.concat([results.assign(seed=seed) for seed in (1, 2)])
    model = comparison[["fraction", "n_subjects", "difference", "low", "high"]]

    def axis_of(figure: str, measure) -> mpl.axis.Axis:
        return {
            "bars": lambda: plots.difference_bars(results, comparison, measure=measure).axes[0].yaxis,
            "seeds": lambda: plots.seed_differences(several, model, measure=measure).axes[0].yaxis,
            "transfer": lambda: plots.transfer_map(comparison.assign(task="WM"), measure).axes[0].xaxis,
        }[figure]()

    for figure in ("bars", "seeds", "transfer"):
        after = ", pre-trained − from scratch" if figure == "transfer" else ""
        share, years = axis_of(figure, MEASURES["accuracy"]), axis_of(figure, YEARS)
        assert share.get_label_text() == "difference in accuracy" + after
        assert years.get_label_text() == f"difference in absolute error{after} (years)"
        assert ticks(share) == "50%"
        assert "%" not in ticks(years)


# ---- whether the comparison is fair

THREE = ["s1", "s2", "s3"]


def test_step_curves_are_means_of_the_held_out_in_a_panel_for_each_fraction():
    curves = pd.DataFrame(
        [(v, f, n, step, split, s, 0.01 * step + 0.1 * i) for v in ("pretrained", "scratch")
         for f, n in ((0.1, 1), (1.0, 10)) for step in (4, 8) for split in ("train", "validation")
         for i, s in enumerate(THREE)],
        columns=["variant", "fraction", "n_subjects", "step", "split", "subject", "score"],
    )  # fmt: skip
    curves.loc[curves["split"] == "train", "score"] = 1.0
    figure = plots.step_curves(curves, 4)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["1 subject", "10 subjects"]
    for axes in figure.axes:
        lines = axes.get_lines()
        assert len(lines) == 3  # two decoders, chance
        for line in lines[:2]:
            assert line.get_xdata().tolist() == [4, 8]
            assert line.get_ydata() == pytest.approx([0.14, 0.18])
        assert np.allclose(lines[2].get_ydata(), 0.25)


def test_rate_lines_average_fractions_and_seeds_before_subjects():
    results = pd.DataFrame(
        [("scratch", f"people-rate{rate:g}", fraction, seed, s, 100 * rate + fraction + 0.1 * i)
         for rate in (0.001, 0.003) for fraction in (0.1, 0.3) for seed in (1, 2) for i, s in enumerate(THREE)],
        columns=["variant", "change", "fraction", "seed", "subject", "score"],
    )  # fmt: skip
    axes = plots.rate_lines(results, 4).axes[0]
    assert axes.get_xscale() == "log"
    line = axes.get_lines()[0]
    assert line.get_xdata().tolist() == [0.001, 0.003]
    assert line.get_ydata() == pytest.approx([0.4, 0.6])


def test_gain_lines_have_a_panel_for_each_size_and_a_line_for_each_contrast():
    gain = pd.DataFrame(
        [(c, n, few, s, 0.01 * n * c + 0.1 * i) for c in (1.0, 2.5) for n in (3, 10) for few in (1, 3)
         for i, s in enumerate(THREE)],
        columns=["contrast", "n_pretraining", "n_subjects", "subject", "gain"],
    )  # fmt: skip
    figure = plots.gain_lines(gain)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "1 subject to fine-tune on",
        "3 subjects to fine-tune on",
    ]
    for axes in figure.axes:
        drawn = [line.get_ydata() for line in axes.get_lines() if line.get_marker() in ("o", "s")]
        means = {c: [0.03 * c + 0.1, 0.1 * c + 0.1] for c in (1.0, 2.5)}
        assert drawn[0] == pytest.approx(means[1.0])
        assert drawn[1] == pytest.approx(means[2.5])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "10"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["contrast 1%", "contrast 2.5%"]
    alone = plots.gain_lines(gain[gain["contrast"] == 1]).axes[0]
    assert alone.get_lines()[0].get_xdata() == pytest.approx([0, 1])  # nothing to stand beside


# ---- structural images


def test_reconstructions_have_a_row_each_and_are_blank_outside_the_mask():
    volumes = np.random.default_rng(0).random((3, 8, 9, 7)).astype(np.float32)
    mask = np.zeros((8, 9, 7), bool)
    mask[1:7, 2:8, 1:6] = True
    figure = plots.reconstruction_grid({"original": volumes, "at the end": volumes / 2}, mask)
    axes = np.array(figure.axes).reshape(2, 6)
    assert [line[0].get_ylabel() for line in axes] == ["original", "at the end"]
    first, second = (np.asarray(line[2].images[0].get_array().filled(np.nan)) for line in axes)
    np.testing.assert_allclose(second[mask[2]], first[mask[2]] / 2)
    assert np.isnan(first[~mask[2]]).all()


def test_histograms_of_codes_share_their_bins():
    random = np.random.default_rng(0)
    codes = {"plain": random.normal(1, 0.3, (20, 50)), "penalty": np.zeros((20, 50))}
    figure = plots.code_histograms(codes)
    edges = [[bar.get_x() for bar in axes.patches] for axes in figure.axes]
    assert edges[0] == pytest.approx(edges[1])
    assert max(bar.get_height() for bar in figure.axes[1].patches) == pytest.approx(1)


def test_a_few_large_units_do_not_hide_the_others():
    features = np.tile([*np.linspace(0, 1, 199), 50.0], (3, 1))
    (axes,) = plots.code_histograms({"code": features}).axes
    assert max(bar.get_x() for bar in axes.patches) < 1
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)
    assert axes.get_xlabel() == "mean activation; 2% above"


def test_projections_tell_held_out_images_apart():
    table = pd.DataFrame({"diagnosis": ["AD", "CN"] * 5, "held_out": [False] * 6 + [True] * 4})
    figure = plots.code_projections({"PCA": np.random.default_rng(0).normal(size=(10, 2))}, table, "diagnosis")
    assert len(figure.axes[0].collections[0].get_offsets()) == 10
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["AD", "CN", "trained on", "held out"]


def test_error_curves_have_a_line_for_each_part():
    table = pd.DataFrame({"split": ["train", "validation"] * 2, "epoch": [1, 1, 2, 2], "score": [0.4, 0.5, 0.2, 0.3]})
    figure = plots.error_curves({"autoencoding": table})
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_ydata()) == 2]
    assert sorted(drawn) == [[0.4, 0.2], [0.5, 0.3]]


def test_z_scores_are_shown_around_zero():
    figure = plots.reconstruction_grid({"original": np.zeros((1, 4, 4, 4))}, np.ones((4, 4, 4), bool), z_scores=True)
    assert figure.axes[0].images[0].get_clim() == (-3, 3)


def test_errors_have_a_bar_for_each_model_and_a_point_for_each_person():
    errors = pd.DataFrame(
        {"subject": ["a", "b"], "autoencoder": [1.0, 2.0], "mean": 3.0, "pca": 0.5, "n_components": 9}
    )
    axes = plots.error_bars(errors).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([3, 1.5, 0.5])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["mean volume", "autoencoder", "PCA, 9"]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 6


def test_every_planted_fault_has_its_panel_beside_the_decoder_without():
    table = pd.DataFrame({"split": ["train", "validation"] * 2, "step": [1, 1, 2, 2], "loss": [0.8, 0.9, 0.4, 0.7]})
    metrics = pd.concat([table.assign(change=name, loss=table["loss"] + shift)
                         for name, shift in (("", 0), ("fault-a", 1), ("fault-b", 2))])  # fmt: skip
    figure = plots.fault_curves(metrics, {"": "", "fault-a": "one", "fault-b": "other", "fault-c": "not run"})
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title("left") for axes in panels] == ["one", "other"]
    assert [line.get_ydata().tolist() for line in panels[0].lines] == pytest.approx(
        np.array([[0.8, 0.4], [0.9, 0.7], [1.8, 1.4], [1.9, 1.7]])
    )


def test_motion_and_scores_have_a_mark_per_subject() -> None:
    units = pd.DataFrame({"split": ["train"] * 3 + ["validation"] * 2, "mean_fd_mm": [0.1, 0.2, 0.3, 0.4, 0.1]})
    axes = plots.motion_by_split(units).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 5
    scored = pd.DataFrame(
        {"variant": ["pretrained"] * 3 + ["linear"] * 2, "score": 0.5, "mean_fd_mm": np.arange(5) / 10}
    )
    axes = plots.score_by_motion(scored, "run").axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 2]
    assert axes.get_xlabel() == "mean framewise displacement of a run (mm)"


def test_slices_are_shown_as_they_are_given() -> None:
    images = np.arange(11 * 4 * 5, dtype=float).reshape(11, 4, 5)
    figure = plots.shown_slices(images)
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(shown) == 11
    assert all(np.array_equal(one, other) for one, other in zip(shown, images, strict=True))


def test_reliability_is_drawn_at_the_means_of_its_bins() -> None:
    bins = pd.DataFrame(
        {"low": [0.4, 0.9], "high": [0.5, 1.0], "n": [3, 7], "confidence": [0.45, 0.95], "accuracy": [0.3, 0.9]}
    )
    above, below = plots.reliability_diagram(bins).axes
    diagonal, drawn = above.get_lines()
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert drawn.get_xydata().tolist() == [[0.45, 0.3], [0.95, 0.9]]
    assert [(bar.get_x(), bar.get_height()) for bar in below.patches] == [(0.4, 3), (0.9, 7)]


def test_everybody_of_two_groups_has_a_mark_in_each_panel() -> None:
    values, second = np.array([-2.0, 1.0, 0.5, -0.25]), np.array([False, True, True, False])
    figure = plots.group_values({"voxels": values, "relevance": -values}, second, ("control", "patient"))
    for axes, sign in zip(figure.axes, (1, -1), strict=True):
        controls, patients, _ = axes.get_lines()
        assert sorted(controls.get_xdata()) == sorted(sign * values[~second])
        assert sorted(patients.get_xdata()) == sorted(sign * values[second])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["control", "patient"]
