from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deeplight_core.models.noise import dropout, normal, part_of_batch, uniform

CPU = torch.device("cpu")


def test_parts_of_a_batch_draw_the_noise_of_the_whole() -> None:
    torch.manual_seed(0)
    whole = uniform(7, 2, 3, device=CPU)
    parts = []
    for first, n in ((0, 3), (3, 0), (3, 4)):
        torch.manual_seed(0)
        with part_of_batch(first, n, 7):
            drawn = uniform(max(1, n), 2, 3, device=CPU)  # a part of nothing sees one example that counts as nothing
            parts.append(drawn[:n])
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_frames_and_views_of_an_example_have_its_noise(draw: Callable[..., Tensor]) -> None:
    """Whoever flattens examples of three frames draws for each example in a row, however the batch is shared."""
    torch.manual_seed(0)
    with part_of_batch(0, 5, 5):
        whole = draw(15, 2, device=CPU)
    torch.manual_seed(0)
    with part_of_batch(2, 2, 5):
        assert torch.equal(draw(6, 2, device=CPU), whole[6:12])
    with part_of_batch(2, 2, 5), pytest.raises(AssertionError, match=r"noise for 7 items, but .* has 2 examples"):
        draw(7, device=CPU)


def test_the_part_ends_with_its_block() -> None:
    with pytest.raises(KeyError), part_of_batch(2, 3, 9):
        raise KeyError
    assert uniform(4, device=CPU).shape == (4,)


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(400, 500), 0.3, training=True)
    assert {round(value, 4) for value in dropped.unique().tolist()} == {0, round(1 / 0.7, 4)}
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout(dropped, 0.3, training=False), dropped)
