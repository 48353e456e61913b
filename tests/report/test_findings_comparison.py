"""What the page on ways to pre-train says, from tables made by hand."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from deeplight_core.analysis import crossed, statistics
from deeplight_core.config import Profile, load_profile
from deeplight_core.report import findings, plots

pytestmark = pytest.mark.usefixtures("no_window")
SIZES = {0.1: 3, 1.0: 30}


def results(noise: float = 0.01, **means: tuple[float, float]) -> pd.DataFrame:
    """Eight held-out subjects and three seeds; every decoder's mean with 3 and with 30 subjects."""
    random, rows = np.random.default_rng(0), []
    for variant, of_sizes in means.items():
        for (fraction, n), mean in zip(SIZES.items(), of_sizes, strict=True):
            for i in range(8):
                for seed in (1, 2, 3):
                    score = mean + 0.01 * i + noise * random.normal()
                    rows.append((variant, fraction, n, seed, "WM", f"s{i}", score))
    columns = ["variant", "fraction", "n_subjects", "seed", "task", "subject", "score"]
    return pd.DataFrame(rows, columns=columns)


def verdict(table: pd.DataFrame) -> str:
    return findings.verdict_note(crossed.pairs(table), crossed.crossed_means(table))


def test_a_way_that_is_better_is_named_with_its_sizes() -> None:
    said = verdict(results(pretrained=(0.7, 0.9), contrast=(0.5, 0.8), scratch=(0.5, 0.8), linear=(0.4, 0.5)))
    assert said.startswith(
        "**Ways to pre-train differ**: supervised on other tasks better than temporal contrast (3 and 30 subjects). "
    )
    assert "Better than no pre-training: supervised on other tasks (3 and 30 subjects)." in said
    assert re.search(r"Not told apart from no pre-training: temporal contrast \([+-]\d( to [+-]\d)? points\)\.", said)
    better = " and ".join(f"{way} (3 and 30 subjects)" for way in ("supervised on other tasks", "temporal contrast"))
    assert said.endswith(f" Better than a linear model: {better}.")


def test_frozen_features_stand_beside_linear_models_and_not_beside_fine_tuned_networks() -> None:
    table = results(pretrained=(0.7, 0.8), scratch=(0.5, 0.6), linear=(0.7, 0.8), **{"images-frozen": (0.2, 0.3)})
    said = verdict(table)
    assert said.startswith("Better than no pre-training: supervised on other tasks (3 and 30 subjects).")
    assert "linear model wins" not in said
    assert said.endswith(" Worse than a linear model: features of photographs (3 and 30 subjects).")


def test_frozen_features_are_compared_with_each_other_and_with_random_ones() -> None:
    own = {"supervised-frozen": (0.7, 0.6), "contrast-frozen": (0.5, 0.6), "images-frozen": (0.4, 0.7)}
    table = results(pretrained=(0.9, 0.9), **own, **{"random-frozen": (0.5, 0.6)})
    said = findings.features_note(crossed.pairs(findings.frozen_features(table)))
    assert "supervised on other tasks better than temporal contrast (3 subjects) and photographs (3 subjects)" in said
    assert "photographs better than supervised on other tasks (30 subjects) and temporal contrast (30 subjects)" in said
    assert "Better than random weights: supervised on other tasks (3 subjects) and photographs (30 subjects)." in said
    assert "Worse than random weights: photographs (3 subjects)." in said
    assert re.search(r"Not told apart from random weights: temporal contrast \([+-]\d( to [+-]\d)? points\)\.", said)
    alike = results(0.1, **dict.fromkeys(own, (0.5, 0.5)))
    assert "no difference between the ways can be shown" in findings.features_note(crossed.pairs(alike))
    assert not findings.features_note(crossed.pairs(findings.frozen_features(results(pretrained=(0.7, 0.8)))))


def test_every_way_stands_beside_its_own_network_from_scratch() -> None:
    both = {"cae": (0.5, 0.5), "cae-scratch": (0.3, 0.5), "images": (0.5, 0.5), "images-scratch": (0.7, 0.5)}
    said = verdict(results(**both))
    assert "Better than no pre-training: autoencoding (3 subjects). Worse than no pre-training: photographs (3" in said
    assert "Not told apart" not in said


def test_ways_that_change_places_change_the_verdict() -> None:
    said = verdict(results(pretrained=(0.5, 0.8), contrast=(0.7, 0.8), scratch=(0.5, 0.8)))
    assert "Better than no pre-training: temporal contrast (3 subjects)." in said
    assert "temporal contrast better than supervised on other tasks (3 subjects)." in said
    assert "Not told apart from no pre-training: supervised on other tasks (" in said
    said = verdict(results(scratch=(0.7, 0.8), pretrained=(0.5, 0.8)))
    assert "Worse than no pre-training: supervised on other tasks (3 subjects)." in said


def test_ways_that_are_better_than_the_same_others_share_a_clause() -> None:
    said = verdict(results(pretrained=(0.7, 0.8), reconstruction=(0.7, 0.8), contrast=(0.5, 0.6), scratch=(0.5, 0.6)))
    assert (
        "differ**: supervised on other tasks and autoencoding of fMRI volumes better than temporal contrast (3 and 30 "
        "subjects). Better" in said
    )


def test_how_far_a_way_is_from_scratch_is_told_whichever_comes_first() -> None:
    noisy = {"pretrained": (0.7, 0.61), "scratch": (0.6, 0.6)}
    for order in (noisy, dict(reversed(noisy.items()))):
        table = results(0.0, **order)
        table["score"] += np.where(table["seed"] == 2, 0.3, 0.0) * (table["variant"] == "pretrained")
        assert "Not told apart from no pre-training: supervised on other tasks (+11 to +20 points)." in verdict(table)


def test_that_nothing_can_be_shown_is_said() -> None:
    said = verdict(results(0.1, pretrained=(0.6, 0.7), contrast=(0.6, 0.7), scratch=(0.6, 0.7), linear=(0.6, 0.7)))
    assert "**No difference between the ways to pre-train can be shown.**" in said
    assert "No way to pre-train can be told apart from the linear models." in said
    assert findings.verdict_note(crossed.pairs(results().iloc[:0]), pd.DataFrame()) == ""


def test_that_a_linear_model_wins_is_said() -> None:
    said = verdict(results(pretrained=(0.5, 0.8), contrast=(0.5, 0.6), scratch=(0.4, 0.8), linear=(0.7, 0.8)))
    assert "**A linear model wins**: no way to pre-train is shown to be better than one; all are worse with 3 " in said
    assert said.endswith(
        "Worse than a linear model: supervised on other tasks (3 subjects) and temporal contrast (3 and 30 subjects)."
    )
    table = results(pretrained=(0.5, 0.8), contrast=(0.5, 0.6), scratch=(0.4, 0.8), linear=(0.7, 0.8))
    short = findings.verdict_note(crossed.pairs(table), crossed.crossed_means(table), details=False)
    assert "differ**: supervised on other tasks better than temporal contrast. Better than no pre-training:" in short
    assert short.endswith(
        "**A linear model wins**: no way to pre-train is shown to be better than one; all are worse with 3 subjects."
    )


def test_pairs_and_effects_are_told_with_their_numbers() -> None:
    table = results(pretrained=(0.7, 0.8), scratch=(0.5, 0.8))
    said = findings.pairs_note(crossed.pairs(table))
    assert said.startswith("1 of 2 tests tell two decoders apart (1 with 3 subjects and 0 with 30 subjects; Holm")
    said = findings.effects_note(crossed.effects(table))
    f = crossed.effects(table).set_index("effect").loc["way × size", "f"]
    assert re.search(rf"way × size: F\(\d\.\d, \d\.\d\) = {f:.2f}, p = ", said)
    one = table[table["seed"] == 1]
    assert "No analysis of variance of the ways to pre-train" in findings.effects_note(crossed.effects(one))


def test_the_analysis_of_variance_is_of_ways_to_pretrain() -> None:
    table = results(pretrained=(0.7, 0.8), contrast=(0.7, 0.8), scratch=(0.2, 0.3), linear=(0.5, 0.8), shuffled=(0, 0))
    assert set(findings.ways_to_pretrain(table)["variant"]) == {"pretrained", "contrast"}
    assert "way: F" in findings.effects_note(crossed.effects(findings.ways_to_pretrain(table)))
    nothing = findings.effects_note(crossed.effects(findings.ways_to_pretrain(table.iloc[:0])))
    assert nothing.startswith("No analysis of variance")
    assert "it takes two or more" in findings.effects_note(crossed.effects(table.query("variant == 'pretrained'")))


def test_tables_have_a_row_per_decoder() -> None:
    table = results(pretrained=(0.7, 0.8), scratch=(0.5, 0.81), **{"supervised-frozen": (0.6, 0.7)})
    means = crossed.crossed_means(table)
    shown = findings.sizes_table(means).data
    assert list(shown.columns) == ["decoder", "3 subjects", "30 subjects"]
    assert shown.iloc[0, 1].startswith("73.")
    frozen = findings.frozen_table(means).data
    assert frozen.iloc[0, 0] == "supervised on other tasks"
    assert [float(part.strip(" %")) for part in frozen.iloc[0, 1].split("/")] == pytest.approx([63.5, 73.5], abs=0.5)
    assert set(findings.fine_tuned_ways(table)["variant"]) == {"pretrained", "scratch"}
    random = results(contrast=(0.7, 0.8), scratch=(0.5, 0.81), **{"random-frozen": (0.3, 0.4)})
    frozen = findings.frozen_table(crossed.crossed_means(random)).data
    assert frozen.iloc[0, 0] == "random weights"
    assert float(frozen.iloc[0, 1].split("/")[1].strip(" %")) == pytest.approx(53.5, abs=0.5)  # from scratch
    assert "random-frozen" not in set(findings.fine_tuned_ways(random.query("variant != 'contrast'"))["variant"])
    saved = findings.saved_by_ways_table(table).data
    assert saved["decoder"].tolist() == ["DeepLight, pre-trained", "supervised features, linear"]
    assert 3 < float(saved.iloc[0, 1].split()[0]) < 30
    worse = findings.saved_by_ways_table(results(pretrained=(0.3, 0.4), scratch=(0.5, 0.81))).data
    assert worse.iloc[0, 1] == "≤ 3 [≤ 3, ≤ 3]"
    better = findings.saved_by_ways_table(results(pretrained=(0.9, 0.9), scratch=(0.5, 0.81))).data
    assert better.iloc[0, 1] == "> 30 [> 30, > 30]"
    assert findings.saved_by_ways_table(table[table["variant"] != "scratch"]) is None
    assert findings.sizes_table(means.iloc[:0]) is None


def test_the_likely_best_are_named() -> None:
    table = results(pretrained=(0.7, 0.5), scratch=(0.5, 0.8))
    said = findings.best_ways_note(table)
    assert "with 3 subjects: DeepLight, pre-trained 100%" in said
    assert "with 30 subjects: DeepLight, from scratch 100%" in said
    assert said.startswith("Share of resamples of subjects and seeds in which")
    assert "alone" not in said
    assert findings.best_ways_note(table.query("seed == 1")).startswith("Share of resamples of subjects in which")
    assert "Nothing is drawn again" in findings.best_ways_note(table.query("seed == 1").assign(fold=1))
    assert not findings.best_ways_note(table.iloc[:0])


def test_the_likely_best_way_to_pretrain_is_named_where_another_decoder_wins() -> None:
    said = findings.best_ways_note(results(pretrained=(0.6, 0.5), contrast=(0.5, 0.6), linear=(0.9, 0.9)))
    everyone, alone = said.split(" Of the ways to pre-train alone, ")
    assert everyone.count("logistic regression 100%") == 2
    first, second = alone.split("; ")
    assert first == "with 3 subjects: DeepLight, pre-trained 100%"
    assert second == "with 30 subjects: DeepLight, pre-trained by temporal contrast 100%."


def test_the_first_papers_test_is_told_beside_the_crossed_one() -> None:
    table = results(scratch=(0.6, 0.6), pretrained=(0.7, 0.601), contrast=(0.5, 0.599))
    luck = 0.2 * ((table["seed"] == 2) & (table["variant"] == "pretrained")) - 0.2 * (
        (table["seed"] == 2) & (table["variant"] == "contrast")
    )
    table["score"] += luck * (table["n_subjects"] == 3)  # one training of each decides
    assert not crossed.pairs(table)["differ"].any()
    said = findings.paired_note(table)
    assert said.endswith(
        "calls supervised on other tasks better (3 subjects) and temporal contrast worse (3 subjects)."
    )
    assert findings.paired_note(table.query("variant != 'scratch'")) == ""
    assert findings.paired_note(results(0.1, scratch=(0.6, 0.6), pretrained=(0.6, 0.6))) == ""


def test_the_tests_stand_in_a_table_with_their_numbers() -> None:
    pairs = crossed.pairs(results(pretrained=(0.7, 0.8), scratch=(0.5, 0.8)))
    shown = findings.pairs_table(pairs).data
    assert shown.iloc[:, :3].to_numpy().tolist() == [
        ["pre-trained", "from scratch", "3"],
        ["pre-trained", "from scratch", "30"],
    ]
    assert shown.iloc[0, 3].startswith(f"{pairs['difference'].iloc[0]:+.1%} [")
    assert [text.endswith("★") for text in shown["p (Holm)"]] == [True, False]
    assert findings.pairs_table(pairs.iloc[:0]) is None


def test_similarity_is_told_beside_that_of_seeds() -> None:
    rows = [(a, i, b, j, 1.0 if (a, i) == (b, j) else 0.6 if a == b else 0.2)
            for a in ("supervised-frozen", "contrast-frozen") for i in (1, 2)
            for b in ("supervised-frozen", "contrast-frozen") for j in (1, 2)]  # fmt: skip
    similar = pd.DataFrame(rows, columns=["a", "seed_a", "b", "seed_b", "cka"]).assign(dimensions_a=2.5)
    said = findings.similarity_note(similar)
    assert said.startswith("Over all seeds: temporal contrast and supervised on other tasks (CKA 0.20, 0.20 to 0.20).")
    third = similar[similar["a"] == "contrast-frozen"].assign(a="random-frozen", cka=0.1)
    three = findings.similarity_note(pd.concat([similar, third]))
    assert (
        "most alike are temporal contrast and supervised on other tasks (CKA 0.20, 0.20 to 0.20), least random" in three
    )
    assert "Two seeds of one way: supervised on other tasks 0.60; temporal contrast 0.60." in said
    assert said.endswith("Participation ratios: supervised on other tasks 2.5, temporal contrast 2.5.")
    published = similar.replace({"contrast-frozen": "images-frozen"})
    published.loc[(published["a"] == published["b"]) & (published["a"] == "images-frozen"), "cka"] = 1.0
    assert "Two seeds of one way: supervised on other tasks 0.60." in findings.similarity_note(published)
    figure = plots.similarity_map(similar)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["0.60", "0.20", "0.20", "0.60"]
    figure = plots.similarity_map(published)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.60", "0.20", "0.20"]


def test_figures_show_every_size_and_decoder() -> None:
    table = results(pretrained=(0.7, 0.8), contrast=(0.5, 0.8), scratch=(0.5, 0.8))
    figure = plots.pair_maps(crossed.pairs(table))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["3 subjects", "30 subjects"]
    first = [text.get_text() for text in figure.axes[0].texts]
    assert sum("★" in text for text in first) == 4  # pre-trained against both, in both directions
    costs = pd.DataFrame(
        [("pretrained", 1000, 50), ("contrast", np.nan, 50), ("scratch", 1000, 50)],
        columns=["variant", "pretraining_volumes", "finetuning_volumes"],
    )
    figure = plots.benefit_by_cost(crossed.crossed_means(table), costs)
    points = [container.lines[0].get_xdata()[0] for container in figure.axes[0].containers]
    assert points == pytest.approx([1050, 1.12 * 1050])  # what published weights have seen is not counted
    plt.close("all")


def test_costs_are_shown_with_dashes_where_there_is_no_encoder() -> None:
    costs = pd.DataFrame(
        {
            "variant": ["pretrained", "linear"],
            "n_parameters": [235344.0, np.nan],
            "pretraining_volumes": [135744.0, np.nan],
            "pretraining_s": [300.0, np.nan],
            "finetuning_volumes": [28800.0, 1200],
            "finetuning_s": [80.0, 2],
        }
    )
    means = pd.DataFrame({"variant": "pretrained", "n_subjects": [3, 30], "mean": [0.5, 0.75]})
    shown = findings.costs_table(costs, means).data
    assert shown.iloc[0].tolist()[1:] == ["235,344", "135,744", "28,800", "300", "80", "75.0%"]
    assert shown.iloc[1].tolist()[1:] == ["–", "–", "1,200", "–", "2", "–"]
    assert findings.costs_table(costs.iloc[:0], means) is None


def test_what_other_conditions_change_is_told_for_each_decoder() -> None:
    condition = {"title": "six people", "overrides": {}}
    own = Profile.model_validate({"name": "mine", "controls": {"sensitivity": {"people": condition}}})
    assert not findings.conditions_note(Profile(), pd.DataFrame())  # tries none
    assert findings.conditions_note(own, pd.DataFrame()) == (
        "Other conditions have not been tried: `make controls PROFILE=mine`."
    )
    before = (
        results(pretrained=(0.5, 0.8), contrast=(0.5, 0.8), scratch=(0.5, 0.6)).query("fraction == 1").assign(change="")
    )
    shift = before["variant"].map({"pretrained": -0.2, "contrast": 0.0, "scratch": 0.1})
    noise = np.random.default_rng(1).normal(0, 0.01, len(before))
    after = before.assign(change="sensitivity-people", score=before["score"] + shift + noise)
    tests = statistics.compare_changes(pd.concat([before, after]))
    said = findings.conditions_note(own, tests)
    assert "*six people*: worse DeepLight, pre-trained; better DeepLight, from scratch." in said
    assert said.startswith(
        "With 30 subjects to train on (paired t-tests over held-out subjects, Holm over all cells; 3 seeds"
    )
    shown = findings.conditions_table(own, tests).to_html()
    assert shown.count("★") == 2
    figure = plots.condition_dots(tests, findings.conditions(own))
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == ["six people"]
    other = tests[tests["variant"] == "contrast"].assign(change="sensitivity-raw")
    figure = plots.condition_dots(pd.concat([tests, other]), {**findings.conditions(own), "sensitivity-raw": "raw"})
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert len(rows[0]) == 3
    assert rows[1] == ["DeepLight, pre-trained by temporal contrast"]


def test_published_decoders_stand_beside_the_sweep_on_blocks() -> None:
    swept, published = results(pretrained=(0.7, 0.8), linear=(0.6, 0.7)), results(cae=(0.3, 0.4))
    both = [table.assign(measure="accuracy", level="block", target="states") for table in (swept, published)]
    table = findings.as_published(*both)
    assert set(table["variant"]) == {"cae", "pretrained", "linear"}
    assert findings.as_published(both[0], both[1].iloc[:0]).empty
    assert findings.as_published(both[0], both[1].query("seed == 1")).empty  # unfinished


def test_of_features_it_is_told_what_their_whole_network_is_worth() -> None:
    swept = results(pretrained=(0.7, 0.8), **{"images-frozen": (0.3, 0.4)})
    tuned = results(cae=(0.5, 0.5), images=(0.6, 0.9)).assign(measure="accuracy", level="volume", target="states")
    assert re.fullmatch(
        r"Of photographs only features are compared here; the whole network, fine-tuned, has "
        r"6\d\.\d% \[.*\] with 3 subjects and 9\d\.\d% \[.*\] with 30 subjects\.",
        findings.tuned_note(swept, tuned),
    )
    unfinished = tuned.query("variant == 'cae' or seed == 1")
    assert not findings.tuned_note(swept, unfinished)
    assert not findings.tuned_note(swept, tuned.iloc[:0])
    assert not findings.tuned_note(results(pretrained=(0.7, 0.8), images=(0.6, 0.9)), tuned)


def test_published_decoders_are_drawn_with_those_of_their_own_network_and_the_linear_ones() -> None:
    both = {"cae": (0.9, 0.9), "cae-scratch": (0.8, 0.5)}
    table = results(pretrained=(0.6, 0.61), scratch=(0.5, 0.5), linear=(0.7, 0.8), **both)
    means = crossed.crossed_means(table)
    panels = plots.accuracy_by_network(means, 4).axes
    assert [sorted(axes.get_legend_handles_labels()[1]) for axes in panels] == [
        ["DeepLight, from scratch", "DeepLight, pre-trained", "logistic regression"],
        ["convolutional autoencoder, pre-trained", "convolutional encoder, from scratch", "logistic regression"],
    ]
    pretrained = next(drawn for drawn in panels[1].containers if drawn.get_label().startswith("convolutional auto"))
    assert pretrained.lines[0].get_ydata() == pytest.approx(means.query("variant == 'cae'")["mean"])


def test_what_networks_are_worth_without_pre_training_is_told_beside_the_ways() -> None:
    table = findings.as_published(
        *(
            rows.assign(measure="accuracy", level="block", target="states")
            for rows in (
                results(pretrained=(0.6, 0.61), scratch=(0.5, 0.5)),
                results(**{"cae": (0.9, 0.9), "cae-scratch": (0.8, 0.5)}),
            )
        )
    )
    own, means = load_profile("comparison"), crossed.crossed_means(table)
    said = findings.published_note(own, crossed.pairs(table), means)
    assert (
        "Not the papers': the convolutional encoder has 3 layers instead of 4, which the grid is too coarse for" in said
    )
    assert "EfficientNet-Lite0 takes the place of ResNet-18 for photographs, and sees 1 slice of a volume." in said
    assert "**Pre-trained networks differ**" in said
    assert "half of the decoders" not in said
    easy = findings.published_note(
        own, crossed.pairs(table), means.assign(mean=means["mean"].where(means["n_subjects"] == 3, 1))
    )
    assert "With 30 subjects, half of the decoders are right on 95% of the blocks or more" in easy
    assert "**Before any pre-training**: convolutional encoder better than DeepLight (3 subjects)." in said
    assert "*convolutional autoencoder, pre-trained* better than *DeepLight, pre-trained* (3 and 30 subjects)" in said
    sizes = "(3 and 30 subjects)"
    better = f"*convolutional autoencoder, pre-trained* {sizes} and *DeepLight, pre-trained* {sizes}"
    assert f"Better than no pre-training: {better}." in said
    none = findings.published_note(own, crossed.pairs(table).assign(differ=False), means)
    assert "**Before any pre-training**: no network is shown to be better than another one." in none
    without = table[~table["variant"].str.endswith("scratch")]
    assert "Before any" not in findings.published_note(own, crossed.pairs(without), crossed.crossed_means(without))
