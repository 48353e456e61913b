import numpy as np
import pandas as pd
import pytest

from deeplight_core.analysis import scores
from deeplight_core.config import Profile
from deeplight_core.models.deeplight import Layer
from deeplight_core.preparation import DataSettings
from deeplight_core.report import findings

STATES = {"A": {"x": ["x"], "y": ["y"]}, "B": {"z": ["z"]}}
PAIRS = [("A", "x"), ("A", "y"), ("B", "z")]
PROFILE = Profile(data=DataSettings(source=STATES, target={"C": {"v": ["v"], "w": ["w"]}}))


def metrics(measure: str = "accuracy", target: str = "state", **levels: float) -> pd.DataFrame:
    """Two epochs of two subjects; the last one ends at `levels` (task → mean), 0.1 lower in validation."""
    rows = [
        (epoch, split, task, target, subject, measure, epoch / 2 * level - 0.1 * (split == "validation") + offset)
        for epoch in (1, 2) for split in ("train", "validation")
        for task, level in levels.items() for subject, offset in (("s1", -0.02), ("s2", 0.02))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["epoch", "split", "task", "target", "subject", "measure", "score"])


def results(measure: str = "accuracy", target: str = "state", scale: float = 1.0) -> pd.DataFrame:
    """Three units, with blocks that are decoded better."""
    table = pd.DataFrame({"task": "C", "subject": ["s1", "s2", "s3"], "score": [0.25, 0.5, 0.75]})
    table = table.assign(measure=measure, target=target, score=scale * table["score"])
    return pd.concat([table.assign(level="volume"), table.assign(level="block", score=scale)])


def predictions(decoded: list[tuple[str, str]]) -> pd.DataFrame:
    """Two volumes of every state and what they are decoded as."""
    true = [pair for pair in PAIRS for _ in range(2)]
    columns = ["task", "state", "predicted_task", "predicted_state"]
    return pd.DataFrame([(*t, *d) for t, d in zip(true, decoded, strict=True)], columns=columns)


RIGHT = [pair for pair in PAIRS for _ in range(2)]


def test_a_plan_says_who_is_trained_on() -> None:
    assert findings.pretraining_note(PROFILE, "supervised", ["s1", "s2"]) == (
        "Pre-training on **2 subjects**, *supervised on other tasks* (Thomas, Müller & Samek (2019)): 3 states of "
        "2 tasks (A, B)."
    )
    runs = PROFILE.model_copy(update={"data": PROFILE.data.model_copy(update={"split_unit": "run"})})
    assert findings.finetuning_note(runs, "scratch", 0.125, 3, 0, ["r1"]) == (
        "**DeepLight, from scratch**, on 12.5% of the training data: 1 run (`r1`); seed 3."
    )
    assert findings.finetuning_note(PROFILE, "linear", 1, 3, 2, ["a", "b"]) == (
        "**Logistic regression**, on 100% of the training data: 2 subjects (`a`, `b`); seed 3, fold 2."
    )


def test_a_plan_names_numbers_by_their_column() -> None:
    data = PROFILE.data.model_copy(update={"source": DataSettings(source={"column": "age", "tasks": ["T1w"]}).source})
    assert findings.pretraining_note(PROFILE, "images", []) == (
        "Nothing is trained here: the encoder has the published weights `package`, *photographs* (after Malik & Bzdok "
        "(2022))."
    )
    plan = findings.pretraining_note(PROFILE.model_copy(update={"data": data}), "supervised", ["s1"])
    assert plan.endswith(
        "**1 subject**, *supervised on other tasks* (Thomas, Müller & Samek (2019)): age of 1 task (T1w)."
    )


def test_a_decoders_size_is_the_sum_of_its_layers() -> None:
    layers = [Layer("a", "convolution", (1, 2, 3, 4), 1200, 4 * 10**9), Layer("b", "linear", (4,), 34, 5 * 10**8)]
    assert findings.decoder_note(layers) == "It has 1,234 parameters and takes 4.5 billion operations for one volume."
    assert findings.decoder_note([]) == ""


def test_learning_curves_end_at_the_mean_over_tasks_then_units() -> None:
    assert findings.curves_note(metrics(A=0.8, B=0.5)) == (
        "After 2 epochs the decoder is right for **65.0%** (SE 2.0%) of the training and **55.0%** (SE 2.0%) of the "
        "validation volumes (means over tasks, then subjects)."
    )
    one = metrics(A=0.8).query("epoch == 1 and subject == 's1'")
    assert findings.curves_note(one, "run") == (
        "After 1 epoch the decoder is right for **38.0%** (SE –) of the training and **28.0%** (SE –) of the "
        "validation volumes (means over runs)."
    )


def test_learning_curves_of_numbers_have_a_part_for_each_column() -> None:
    both = pd.concat([metrics("absolute_error", "age", A=8), metrics("absolute_error", "IQ", A=20)])
    assert findings.curves_note(both) == (
        "After 2 epochs the absolute error of *age* is **8** (SE 0.02) in training and **7.9** (SE 0.02) in "
        "validation; the absolute error of *IQ* is **20** (SE 0.02) in training and **19.9** (SE 0.02) in validation "
        "(means over subjects)."
    )


def test_pre_training_stands_beside_the_papers_with_and_without_gambling() -> None:
    said = findings.paper_note(metrics(A=0.8, GAMBLING=0.3), 16)
    assert said.startswith("Chance is 6.2%. The paper reports 76.04% and 70.55% for 300 subjects")
    assert said.endswith("Without gambling: 80.0% and 70.0% (paper: 84.56% and 79.02%).")
    for others in (metrics(A=0.8, B=0.5), metrics(GAMBLING=0.3)):
        assert "gambling" not in findings.paper_note(others, 16)
    assert findings.paper_note(metrics("absolute_error", "age", A=8), 0) == ""


def test_tasks_are_ordered_by_their_mean() -> None:
    table = pd.DataFrame({"task": ["A", "A", "B", "GAMBLING"], "score": [0.1, 0.3, 0.9, 0.25]})
    assert findings.tasks_note(table[:3]) == "From best to worst: B 90.0%, A 20.0%."
    assert findings.tasks_note(table) == (
        "From best to worst: B 90.0%, GAMBLING 25.0%, A 20.0%. In the paper five tasks lie between 70.00% and 86.12%, "
        "gambling at 28.18%."
    )
    assert findings.tasks_note(table[:0]) == ""


def test_held_out_units_are_counted_volume_by_volume() -> None:
    assert findings.scores_note(results(), 4, "run") == (
        "On the 3 held-out runs the decoder is right for **50.0%** of the volumes (SD 25.0%, from 25.0% to 75.0%); "
        "chance is 25.0%."
    )
    one = results().query("subject == 's1'")
    assert "On the 1 held-out subject the decoder is right for **25.0%** of the volumes (SD –" in findings.scores_note(
        one, 4
    )


def test_held_out_numbers_have_their_own_sentence_and_no_chance() -> None:
    both = pd.concat([results("absolute_error", "age", 8), results("absolute_error", "IQ", 20)])
    assert findings.scores_note(both, 0) == (
        "On the 3 held-out subjects the absolute error of *age* is **4** (SD 2, from 2 to 6). "
        "On the 3 held-out subjects the absolute error of *IQ* is **10** (SD 5, from 5 to 15)."
    )
    assert findings.scores_note(results()[:0], 4) == ""


def test_the_most_frequent_confusion_is_the_largest_share_off_the_diagonal() -> None:
    decoded = [("A", "x"), ("B", "z"), ("A", "y"), ("A", "y"), ("A", "x"), ("A", "x")]
    assert findings.confusion_note(predictions(decoded), PAIRS) == (
        "The most frequent confusion: *z* (B) is decoded as *x* (A) in 100% of its volumes. In 50.0% of all volumes "
        "the decoded state belongs to the right task."
    )
    assert findings.confusion_note(predictions(RIGHT), PAIRS) == (
        "No state is mistaken for another. In 100.0% of all volumes the decoded state belongs to the right task."
    )
    of_one_task = predictions(RIGHT)[:4]
    assert findings.confusion_note(of_one_task, PAIRS[:2]) == "No state is mistaken for another."
    assert findings.confusion_note(pd.DataFrame(), []) == ""


@pytest.mark.parametrize("there", [True, False])
def test_best_and_worst_state_are_on_the_diagonal(there: bool) -> None:
    decoded = [("A", "x"), ("B", "z"), ("A", "x"), ("B", "z"), ("B", "z"), ("B", "z")]
    table = predictions(decoded)
    states = PAIRS if there else [*PAIRS, ("B", "never shown")]
    assert findings.best_and_worst_note(scores.confusion(table, states)) == (
        "*z* is decoded best (100%), *y* worst (0%)."
    )
    assert findings.best_and_worst_note(scores.confusion(table[:0], PAIRS)) == ""
    assert np.isnan(scores.confusion(table[:0], PAIRS)).all(axis=None)
