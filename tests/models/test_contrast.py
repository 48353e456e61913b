"""Temporal contrast: its losses against plain loops, what counts as right, and whether a collapse is noticed."""

import math

import numpy as np
import pytest
import torch
from conftest import SHAPE
from scipy.spatial.distance import pdist

from deeplight_core import models
from deeplight_core.models import Model
from deeplight_core.models.contrast import quality
from deeplight_core.routes import ContrastSettings


def model(**settings: object) -> Model:
    torch.manual_seed(0)
    encoder = {"name": "cae", "shape": list(SHAPE), "settings": {"widths": (3, 4)}}
    return models.build(
        {"encoder": encoder, "head": {"name": "contrast", "targets": [], "settings": {"units": 6, **settings}}}
    )


def batch(n: int = 5, n_frames: int = 2) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    volumes = torch.randn(n, 3, n_frames, *SHAPE[::-1], generator=random)
    return {"volumes": volumes, "targets": torch.empty(n, 0), "numbers": torch.arange(n)}


@pytest.mark.parametrize("negatives", ["series", "batch"])
@pytest.mark.parametrize("margin", [None, 0.5])
def test_the_loss_equals_a_plain_loop(negatives: str, margin: float | None) -> None:
    outcome = model(negatives=negatives, margin=margin, temperature=0.2).train().loss(batch())
    z = outcome.answer.numpy().astype(float)
    assert np.allclose(np.linalg.norm(z, axis=2), 1)
    for i in range(len(z)):
        beginning, middle, end = z[i]
        positive, wrong = end @ middle, [end @ beginning]
        if negatives == "batch":
            wrong += [end @ z[j, part] for j in range(len(z)) if j != i for part in range(3)]
        if margin:
            expected = np.mean([max(0.0, margin - positive + s) for s in wrong])
        else:
            powers = np.exp(np.array([positive, *wrong]) / 0.2)
            expected = -math.log(powers[0] / powers.sum())
        assert outcome.each[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert outcome.score[i, 0].item() == float(positive > end @ beginning)
    assert outcome.loss.item() == pytest.approx(outcome.each.mean().item())


def test_a_window_is_encoded_by_itself_and_its_order_of_frames_does_not_matter() -> None:
    own, data = model().eval(), batch()
    whole = own.loss(data).answer
    alone = own.loss({key: value[2:3] for key, value in data.items()}).answer
    torch.testing.assert_close(alone[0], whole[2])
    turned = own.loss({**data, "volumes": data["volumes"].flip(2)}).answer
    torch.testing.assert_close(turned, whole)


def test_outside_training_no_loss_depends_on_the_batch() -> None:
    own, data = model(negatives="batch").eval(), batch()
    whole = own.loss(data).each
    alone = torch.cat([own.loss({k: v[i : i + 1] for k, v in data.items()}).each for i in range(5)])
    torch.testing.assert_close(alone, whole)


def test_examples_that_are_not_windows_are_refused() -> None:
    data = batch()
    with pytest.raises(ValueError, match=r"contrast needs windows \(3, frames, z, y, x\), examples are"):
        model().loss({**data, "volumes": data["volumes"][:, 0, 0]})


def test_a_loss_has_a_temperature_or_a_margin_above_zero() -> None:
    for wrong in ({"temperature": 0}, {"margin": 0}, {"margin": 3}):
        with pytest.raises(ValueError, match="1 validation error"):
            ContrastSettings(**wrong)


def test_quality_equals_its_formulas() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(40, 3, 8))
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    found = quality(z)
    assert found.alignment == pytest.approx(np.mean(np.sum((z[:, 2] - z[:, 1]) ** 2, axis=1)))
    assert found.uniformity == pytest.approx(np.log(np.mean(np.exp(-2 * pdist(z[:, 2], "sqeuclidean")))))
    assert found.cosine == pytest.approx(1 - np.mean(pdist(z[:, 2], "cosine")))
    share = np.linalg.eigvalsh(np.cov(z[:, 2].T))
    share /= share.sum()
    assert found.dimensions == pytest.approx(1 / np.sum(share**2))
    assert not found.collapsed


def test_a_collapse_is_noticed() -> None:
    same = np.tile(np.eye(8)[0], (30, 3, 1))
    assert quality(same).collapsed
    assert quality(same + 0.001 * np.random.default_rng(0).normal(size=same.shape)).collapsed
    assert quality(same[:1]).collapsed  # nothing can be said of a single one
    on_a_line = same * np.random.default_rng(1).choice([-1, 1], 30)[:, None, None]
    assert not quality(on_a_line).collapsed
    assert quality(on_a_line).dimensions == pytest.approx(1)
