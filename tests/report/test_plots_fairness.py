import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from deeplight_core.report import plots

SUBJECTS = ["s1", "s2", "s3"]


@pytest.fixture(autouse=True)
def _no_window():
    with mpl.rc_context():
        mpl.use("agg")
        plots.use_style()
        yield
        plt.close("all")


def test_step_curves_are_means_of_the_held_out_in_a_panel_for_each_fraction():
    curves = pd.DataFrame(
        [(v, f, n, step, split, s, 0.01 * step + 0.1 * i) for v in ("pretrained", "scratch")
         for f, n in ((0.1, 1), (1.0, 10)) for step in (4, 8) for split in ("train", "validation")
         for i, s in enumerate(SUBJECTS)],
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
         for rate in (0.001, 0.003) for fraction in (0.1, 0.3) for seed in (1, 2) for i, s in enumerate(SUBJECTS)],
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
         for i, s in enumerate(SUBJECTS)],
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
