from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from deeplight_core.models.heads import Classes, Numbers, Phenotypes, n_answers
from deeplight_core.models.protocol import Encoder
from deeplight_core.routes import ReadoutSettings

EXACT = ReadoutSettings(dropout=0)


class Same(Encoder):
    """Features as they are given."""

    name = "same"
    Settings = ReadoutSettings

    def __init__(self, *output_shape: int) -> None:
        super().__init__((1, 1, 1), EXACT)
        self.output_shape = output_shape

    def forward(self, volumes: Tensor) -> Tensor:
        return volumes


SAME = Same(5)


def features(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)


def numbers(settings: ReadoutSettings = EXACT) -> Numbers:
    torch.manual_seed(0)
    head = Numbers(SAME, ["age", "iq"], settings)
    head.initialise()
    head.standardise(np.array([40, 100]), np.array([8.0, 15]))
    return head


TRUTH = torch.tensor([[30.0, 90], [52, torch.nan], [torch.nan, torch.nan], [41, 120]])


def test_numbers_equal_a_plain_loop() -> None:
    head, given = numbers(), features(4, 5)
    outcome = head.outcome(SAME, {"volumes": given, "targets": TRUTH})
    z = given.detach().numpy() @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    for i in range(4):
        squares = []
        for k, (mean, sd) in enumerate(((40, 8), (100, 15))):
            answer = z[i, k] * sd + mean
            assert outcome.answer[i, k].item() == pytest.approx(answer, rel=1e-5)
            if np.isfinite(truth := TRUTH[i, k].item()):
                squares.append((z[i, k] - (truth - mean) / sd) ** 2)
                assert outcome.score[i, k].item() == pytest.approx(abs(answer - truth), rel=1e-4)
            else:
                assert outcome.score[i, k].isnan()
        assert outcome.each[i].item() == pytest.approx(np.mean(squares) if squares else 0, rel=1e-5)
    assert outcome.loss.item() == pytest.approx(outcome.each.mean().item())


def test_a_missing_number_teaches_nothing() -> None:
    head, given = numbers(), features(4, 5)
    head.outcome(SAME, {"volumes": given, "targets": TRUTH}).loss.backward()
    assert given.grad is not None
    assert (given.grad[2] == 0).all()
    assert (given.grad[[0, 1, 3]] != 0).all()
    before = given.grad.clone()
    given.grad = None
    only_age = TRUTH.clone()
    only_age[1, 0] = torch.nan  # nothing is known of it any more
    numbers().outcome(SAME, {"volumes": given, "targets": only_age}).loss.backward()
    assert (given.grad[1] == 0).all()
    assert torch.equal(given.grad[0], before[0])


def test_a_head_takes_features_with_places() -> None:
    head = Classes(Same(4, 2, 3, 1), [["WM", "body"], ["WM", "face"]], EXACT)
    outcome = head.outcome(SAME, {"volumes": features(3, 4, 2, 3, 1), "targets": torch.tensor([0, 1, 1])})
    assert outcome.answer.shape == (3, 2)
    torch.testing.assert_close(outcome.answer.sum(dim=1), torch.ones(3))


def test_means_and_deviations_are_saved_with_the_weights() -> None:
    torch.manual_seed(1)
    other = Numbers(SAME, ["age", "iq"], EXACT)
    other.load_state_dict(numbers().state_dict())
    assert other.mean.tolist() == [40, 100]
    assert other.sd.tolist() == [8, 15]


@pytest.mark.parametrize("head", [Classes, Numbers])
def test_glorot_normal_and_no_bias(head: type[Classes] | type[Numbers]) -> None:
    torch.manual_seed(0)
    made = head(Same(300), [["t", str(i)] for i in range(200)], EXACT)
    made.initialise()
    assert made.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    assert (made.bias == 0).all()
    made = head(Same(300), [["t", "0"]], EXACT.model_copy(update={"hidden": 200}))
    made.initialise()
    assert made.hidden.weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)  # He's
    assert (made.hidden.bias == 0).all()


def test_places_are_pooled_and_a_hidden_layer_stands_before_the_output() -> None:
    torch.manual_seed(0)
    head = Classes(Same(4, 2, 3, 1), [["t", "a"], ["t", "b"]], ReadoutSettings(dropout=0, pooling="mean", hidden=3))
    head.initialise()
    given = features(5, 4, 2, 3, 1)
    hidden = given.flatten(2).mean(dim=2) @ head.hidden.weight.T + head.hidden.bias
    torch.testing.assert_close(head(given), hidden.clamp(min=0) @ head.weight.T + head.bias)
    assert {*Classes(SAME, [["t", "a"]], EXACT).state_dict()} == {"weight", "bias"}  # as in earlier checkpoints


def test_dropout_acts_on_the_hidden_layer() -> None:
    torch.manual_seed(0)
    head = Classes(Same(4), [["t", "a"]], ReadoutSettings(dropout=0.5, hidden=400)).train()
    for layer in (head.hidden, head):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, float(layer is head.hidden))
    torch.nn.init.ones_(head.weight)
    n_kept = head(features(50, 4)) / 2
    assert abs(n_kept.mean() - 200) < 4 * (100 / 50) ** 0.5


def test_balanced_classes_weigh_the_same_in_the_loss() -> None:
    states, labels = [["t", name] for name in "abc"], torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    torch.manual_seed(0)
    head = Classes(SAME, states, ReadoutSettings(dropout=0, class_weights="balanced"))
    head.weigh(labels.numpy())
    torch.testing.assert_close(head.class_weights, torch.tensor([8 / 12, 8 / 4, 1.0]))
    assert head.class_weights[labels].mean() == 1
    batch = {"volumes": features(8, 5), "targets": labels}
    plain = Classes(SAME, states, EXACT)
    plain.load_state_dict({name: tensor for name, tensor in head.state_dict().items() if name != "class_weights"})
    outcome = head.outcome(SAME, batch)
    torch.testing.assert_close(outcome.each, plain.outcome(SAME, batch).each * head.class_weights[labels])
    torch.testing.assert_close(outcome.loss, outcome.each.mean())
    other = Classes(SAME, states, head.settings)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.class_weights, head.class_weights)


def test_numbers_have_no_classes_to_weigh() -> None:
    with pytest.raises(ValueError, match="numbers age have no classes to weigh"):
        Numbers(SAME, ["age"], ReadoutSettings(class_weights="balanced"))


# ---- columns of several kinds

COLUMNS: list[dict[str, Any]] = [
    {"column": "smoking", "kind": "classes", "levels": ["never", "previous", "current"]},
    {"column": "age", "kind": "number", "levels": None},
    {"column": "income", "kind": "ordered", "levels": ["a", "b", "c", "d"]},
    {"column": "years", "kind": "bins", "levels": [40.0, 80.0, 8]},
]
PEOPLE = torch.tensor(
    [[2, 47.0, 3, 62.0], [0, torch.nan, 0, 41.0], [torch.nan] * 4, [1, 30.0, torch.nan, 95.0], [torch.nan, 51, 1, 57]]
)


def phenotypes() -> Phenotypes:
    torch.manual_seed(0)
    head = Phenotypes(SAME, COLUMNS, EXACT)
    head.initialise()
    head.standardise(np.array([0, 40, 0, 0]), np.array([1.0, 8.0, 1, 1]))
    return head


def of_one_person(z: np.ndarray, truth: list[float]) -> tuple[list[float], list[float], list[float]]:
    """Losses of the known columns, answers and scores, written out."""

    def share(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits) / np.exp(logits).sum()

    smoking, income, years = share(z[:3]), 1 / (1 + np.exp(-z[4:7])), share(z[7:])
    middles = 42.5 + 5 * np.arange(8)
    answers = [*smoking, z[3] * 8 + 40, income.sum(), years @ middles]
    losses, scores = [], []
    if np.isfinite(truth[0]):
        losses.append(-np.log(smoking[int(truth[0])]) / np.log(3))
        scores.append(float(smoking.argmax() == truth[0]))
    if np.isfinite(truth[1]):
        losses.append((z[3] - (truth[1] - 40) / 8) ** 2)
        scores.append(abs(answers[3] - truth[1]))
    if np.isfinite(truth[2]):
        above = np.array([truth[2] > level for level in range(3)])
        losses.append(-np.log(np.where(above, income, 1 - income)).mean() / np.log(2))
        scores.append(abs(answers[4] - truth[2]))
    if np.isfinite(truth[3]):
        inside = min(max(truth[3], 42.5), 77.5)
        soft = np.diff(norm.cdf(np.linspace(40, 80, 9), inside, 5))
        soft = soft / soft.sum()
        losses.append((soft * (np.log(soft) - np.log(years))).sum() / np.log(8))
        scores.append(abs(answers[5] - truth[3]))
    return losses, answers, scores


def test_columns_of_several_kinds_equal_a_plain_loop() -> None:
    head, given = phenotypes(), features(5, 5)
    outcome = head.outcome(SAME, {"volumes": given, "targets": PEOPLE})
    z = given.detach().numpy() @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    assert z.shape == (5, 3 + 1 + 3 + 8)
    assert head.measures == ["accuracy", "absolute_error", "absolute_error", "absolute_error"]
    assert sum(map(n_answers, COLUMNS)) == 6
    for i in range(5):
        losses, answers, scores = of_one_person(z[i].astype(float), PEOPLE[i].tolist())
        assert outcome.each[i].item() == pytest.approx(np.mean(losses) if losses else 0, rel=1e-4)
        np.testing.assert_allclose(outcome.answer[i], answers, rtol=1e-4)
        found = outcome.score[i]
        np.testing.assert_allclose(found[found.isfinite()], scores, rtol=1e-3, atol=1e-4)
    assert outcome.loss.item() == pytest.approx(outcome.each.mean().item())


def test_a_person_of_whom_nothing_is_known_teaches_nothing() -> None:
    given = features(5, 5)
    phenotypes().outcome(SAME, {"volumes": given, "targets": PEOPLE}).loss.backward()
    assert given.grad is not None
    assert (given.grad[2] == 0).all()
    assert (given.grad[[0, 1, 3, 4]] != 0).any(dim=1).all()


def test_columns_of_several_kinds_have_no_class_weights() -> None:
    with pytest.raises(ValueError, match="phenotypes of several kinds have no class weights; set class_weights: none"):
        Phenotypes(SAME, COLUMNS, ReadoutSettings(class_weights="balanced"))
