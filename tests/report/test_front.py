"""The book's front, from tables made by hand."""

import re
from pathlib import Path

import matplotlib.image as mpimg
import numpy as np
import pandas as pd
import pytest
import yaml

from deeplight_core.config import Profile
from deeplight_core.preparation import SimulationSettings
from deeplight_core.report import front
from deeplight_core.routes import VARIANTS

pytestmark = pytest.mark.usefixtures("no_window")
SIZES = {0.1: 3, 1.0: 30}


def results(**means: float) -> pd.DataFrame:
    """Eight held-out subjects, three seeds and two sizes; every decoder's mean at both sizes."""
    random = np.random.default_rng(0)
    rows = [
        (variant, fraction, n, seed, 0, "WM", "state", f"s{i}", "volume", "accuracy", mean + 0.01 * random.normal())
        for variant, mean in means.items()
        for fraction, n in SIZES.items()
        for seed in (1, 2, 3)
        for i in range(8)
    ]
    names = ["variant", "fraction", "n_subjects", "seed", "fold", "task", "target", "subject", "level", "measure"]
    return pd.DataFrame(rows, columns=[*names, "score"])


def profile(name: str) -> Profile:
    sizes = {"fractions": list(SIZES)}
    return Profile(name=name, simulation=SimulationSettings(), sweep=sizes, controls=sizes)


def run(folder: Path, name: str, table: pd.DataFrame) -> Path:
    folder = folder / name
    folder.mkdir()
    table.to_csv(folder / "results.csv", index=False)
    content = yaml.safe_dump(profile(name).model_dump(mode="json"))
    (folder / "profile.yaml").write_text(content, encoding="utf-8")
    return folder


def lines(figure) -> dict[str, list[float]]:
    return {c.get_label(): c.lines[0].get_ydata().tolist() for c in figure.axes[0].containers}


WAYS = {"pretrained": 0.6, "contrast": 0.8, "images-frozen": 0.5, "scratch": 0.4, "linear": 0.7}


def test_the_comparison_has_a_line_per_way_at_its_means():
    table = results(**WAYS, **{"contrast-frozen": 0.3, "shuffled": 0.4, "linear-pretrained": 0.7})
    figure, said = front.comparison_front(profile("ways"), table)
    drawn = lines(figure)
    assert set(drawn) == {VARIANTS[variant].title for variant in WAYS}
    for variant, mean in WAYS.items():
        assert drawn[VARIANTS[variant].title] == pytest.approx([mean] * 2, abs=0.02)
    assert said.startswith("**Simulated data**")
    assert "temporal contrast" in said.partition("Better than no pre-training: ")[2].partition(".")[0]
    assert "(3 and 30 subjects)" not in said  # the page has the details


def test_ways_that_change_places_change_the_front():
    _, said = front.comparison_front(profile("ways"), results(**WAYS | {"contrast": 0.2}))
    assert "temporal contrast" in said.partition("Worse than no pre-training: ")[2].partition(".")[0]


def test_the_sweep_says_both_ends():
    figure, said = front.sweep_front(profile("tiny"), results(pretrained=0.6, scratch=0.4, linear=0.7))
    assert set(lines(figure)) == {VARIANTS[v].title for v in ("pretrained", "scratch", "linear")}
    assert said.startswith("**Simulated data**")
    assert "significantly at 2 of 2 fractions (2 up, 0 down)" in said
    assert "Against logistic regression on the same volumes" in said


def test_the_front_is_of_the_comparison_once_it_has_been_run(tmp_path):
    folder = tmp_path / "generated"
    folder.mkdir()
    tiny = run(tmp_path, "tiny", results(pretrained=0.6, scratch=0.4))
    front.write_front(folder, tiny, tmp_path / "ways")
    text = (folder / "front.md").read_text()
    assert "(profile `tiny`)" in text
    assert "`make comparison PROFILE=ways`" in text
    before = mpimg.imread(folder / "front.png")
    front.write_front(folder, tiny, run(tmp_path, "ways", results(**WAYS)))
    text = (folder / "front.md").read_text()
    assert "(profile `ways`)" in text
    assert "(profile `tiny`)" not in text
    assert "make comparison" not in text
    assert "(../comparison/09_comparison)" in text
    after = mpimg.imread(folder / "front.png")
    assert before.shape != after.shape or (before != after).any()


def test_the_front_tells_of_decoders_that_learnt_nothing(tmp_path):
    tiny = run(tmp_path, "tiny", results(pretrained=0.6, scratch=0.25))
    ends = [("a", "pretrained", 0.7), ("b", "scratch", 0.26)]
    names = ["training", "variant", "score", "change", "n_subjects", "split", "step"]
    pd.DataFrame([(*end, "", 3, "train", 9) for end in ends], columns=names).to_csv(tiny / "curves.csv", index=False)
    front.write_front(tmp_path, tiny, tmp_path / "ways")
    assert "**Not learnt:** 1 of 1 training from scratch on 3 subjects ended" in (tmp_path / "front.md").read_text()


def test_the_front_tells_what_a_whole_network_is_worth_whose_features_are_worst(tmp_path):
    ways = run(tmp_path, "ways", results(**WAYS))
    front.write_front(tmp_path, tmp_path / "tiny", ways)
    assert "whole network" not in (tmp_path / "front.md").read_text()
    tuned = results(**{"images": 0.9}).assign(target="WM")
    tuned.to_csv(ways / "published.csv", index=False)
    front.write_front(tmp_path, tmp_path / "tiny", ways)
    said = (tmp_path / "front.md").read_text()
    assert re.search(r"the whole network, fine-tuned, has (89|90)\.\d% \[", said)
    tuned.iloc[:0].to_csv(ways / "published.csv", index=False)
    front.write_front(tmp_path, tmp_path / "tiny", ways)
    assert "whole network" not in (tmp_path / "front.md").read_text()


def test_the_front_tells_what_repeated_trainings_say(tmp_path):
    table = results(pretrained=0.6, scratch=0.4)
    tiny = run(tmp_path, "tiny", table[table["seed"] == 1])
    front.write_front(tmp_path, tiny, tmp_path / "ways")
    assert "one training of each; others can end points away (`make controls PROFILE=tiny`" in (
        (tmp_path / "front.md").read_text()
    )
    table["score"] -= 0.1 * ((table["seed"] == 2) & (table["variant"] == "pretrained"))
    table.to_csv(tiny / "controls_seeds.csv", index=False)
    front.write_front(tmp_path, tiny, tmp_path / "ways")
    said = (tmp_path / "front.md").read_text()
    found = re.search(
        r"Over 3 trainings of each, the pre-trained .* by (\S+)% \[(\S+)%, (\S+)%\] on 3 subjects and", said
    )
    mean, low, high = (float(number) for number in found.groups())
    assert mean == pytest.approx(100 * (0.2 - 0.1 / 3), abs=1)
    assert low < 10 < mean < 20 < high


def test_where_nothing_has_been_run_the_front_has_the_command(tmp_path):
    front.write_front(tmp_path, tmp_path / "tiny", tmp_path / "ways")
    text = (tmp_path / "front.md").read_text()
    assert "`make reproduce PROFILE=tiny`" in text
    assert not (tmp_path / "front.png").exists()
