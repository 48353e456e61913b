import pytest
import torch

from deeplight_core.models.noise import dropout, part_of_batch, uniform

CPU = torch.device("cpu")


def test_parts_of_a_batch_draw_the_noise_of_the_whole() -> None:
    torch.manual_seed(0)
    whole = uniform(7, 2, 3, device=CPU)
    parts = []
    for first, n in ((0, 3), (3, 0), (3, 4)):
        torch.manual_seed(0)
        with part_of_batch(first, 7):
            parts.append(uniform(n, 2, 3, device=CPU))
    assert torch.equal(torch.cat(parts), whole)


def test_the_part_ends_with_its_block() -> None:
    with pytest.raises(KeyError), part_of_batch(2, 9):
        raise KeyError
    assert uniform(4, device=CPU).shape == (4,)


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(400, 500), 0.3, training=True)
    assert {round(value, 4) for value in dropped.unique().tolist()} == {0, round(1 / 0.7, 4)}
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout(dropped, 0.3, training=False), dropped)
