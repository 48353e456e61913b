import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from deeplight_core.models import Model, build
from deeplight_core.models.autoencoder import pool, unpool
from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.deeplight import SliceEncoder
from deeplight_core.routes import DeepLightSettings

SHAPE = (33, 26, 29)  # odd and even; four layers leave 2 × 1 × 1
AUXILIARY = [{"column": "sex", "levels": ["F", "M"]}, {"column": "age", "levels": None}]
NAN = float("nan")
TRUTH = torch.tensor([[0.0, 30], [1, NAN], [NAN, NAN], [NAN, 52]])


def made(
    encoder: str = "cae", head: str = "reconstruction", shape: tuple[int, ...] = SHAPE, targets: Any = (),
    of_encoder: dict[str, Any] | None = None, **of_head: Any,
) -> Model:  # fmt: skip
    torch.manual_seed(0)
    parts = {
        "encoder": {"name": encoder, "shape": list(shape), "settings": of_encoder or {}},
        "head": {"name": head, "targets": list(targets), "settings": of_head},
    }
    return build(parts)


def tiny(head: str = "reconstruction", targets: Any = (), **of_head: Any) -> Model:
    return made("cae", head, (7, 8, 9), targets, {"widths": (4, 3)}, **of_head)


def batch(n: int = 4, shape: tuple[int, ...] = (7, 8, 9), targets: Tensor | None = None) -> dict[str, Tensor]:
    volumes = torch.rand(n, *shape[::-1], generator=torch.Generator().manual_seed(1))
    return {
        "volumes": volumes, "targets": torch.empty(n, 0) if targets is None else targets, "numbers": torch.arange(n),
    }  # fmt: skip


def n_parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# ---- sizes


@pytest.mark.parametrize(("encoder", "whole", "of_encoder"), [("cae", 62_769, 31_392), ("srcae", 91_688, 47_794)])
def test_sizes_of_the_original_code(encoder: str, whole: int, of_encoder: int) -> None:
    model = made(encoder, shape=(108, 128, 108))
    assert (n_parameters(model), n_parameters(model.encoder)) == (whole, of_encoder)
    assert model.encoder.output_shape == (16, 11, 14, 11)


@torch.no_grad()
@pytest.mark.parametrize(("encoder", "code"), [("cae", (16, 11, 13, 11)), ("srcae", (16, 11, 14, 11))])
def test_odd_sizes_of_the_report_return(encoder: str, code: tuple[int, ...]) -> None:
    model = made(encoder, shape=(105, 127, 105))
    features, context = model.encoder.trace(torch.rand(1, 105, 127, 105))
    assert features.shape[1:] == model.encoder.output_shape == code
    assert model.head(features, context).shape == (1, 105, 127, 105)


def test_the_report_s_dense_head_and_a_lean_one() -> None:
    states = [["T1w", "AD"], ["T1w", "CN"]]
    assert n_parameters(made("cae", "classes", (108, 128, 108), states, hidden=32).head) == 867_426
    assert n_parameters(made("cae", "classes", (108, 128, 108), states, pooling="mean").head) == 34


@pytest.mark.parametrize(("encoder", "least"), [("cae", 24), ("srcae", 22)])
def test_the_smallest_grid(encoder: str, least: int) -> None:
    model = made(encoder, shape=(least, least + 1, least))
    assert model.encoder(torch.zeros(1, least, least + 1, least)).shape == (1, 16, 1, 1, 1)
    small = rf"a grid of {least} × {least - 1} × {least} voxels is too small for encoder {encoder} .* needs {least}"
    with pytest.raises(ValueError, match=small):
        made(encoder, shape=(least, least - 1, least))


@pytest.mark.parametrize("encoder", ["cae", "srcae"])
@pytest.mark.parametrize("shape", list(itertools.product((32, 33), (26, 27), (24, 29))))
def test_every_size_returns(encoder: str, shape: tuple[int, int, int]) -> None:
    model = made(
        encoder, shape=shape, of_encoder={"widths": (2, 3, 2)} if encoder == "srcae" else {"widths": (2, 2, 3, 2)}
    )
    volumes = batch(1, shape)["volumes"]
    assert model.head.reconstruct(model.encoder, volumes).shape == volumes.shape


# ---- un-pooling


@pytest.mark.parametrize("size", [(6, 8, 4), (7, 9, 5), (2, 3, 2)])
def test_pooling_and_unpooling_equal_pytorch_s(size: tuple[int, ...]) -> None:
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    own, theirs = (maps.clone().requires_grad_() for _ in range(2))
    values, places = pool(own)
    their_values, their_places = F.max_pool3d(theirs, 2, return_indices=True)
    assert torch.equal(values, their_values)
    assert torch.equal(places, their_places)
    returned = unpool(2 * values, places, size)
    expected = F.max_unpool3d(2 * their_values, their_places, 2, output_size=size)
    assert torch.equal(returned, expected)
    weights = torch.randn(returned.shape, generator=torch.Generator().manual_seed(1))
    (returned * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(own.grad, theirs.grad)


def test_it_runs_where_results_must_be_reproducible() -> None:
    model = tiny()
    torch.use_deterministic_algorithms(True)
    try:
        model.loss(batch()).loss.backward()
        with pytest.raises(RuntimeError, match="max_unpooling3d"):
            F.max_unpool3d(*F.max_pool3d(torch.rand(1, 1, 4, 4, 4), 2, return_indices=True), 2)
    finally:
        torch.use_deterministic_algorithms(False)


class PlainAutoencoder(nn.Module):
    """The report's model in PyTorch's own layers."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        widths = (1, 8, 16, 32, 16)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv3d(*pair, 3, padding=int(pair != pairs[-1])) for pair in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 3, padding=int((a, b) != pairs[-1])) for a, b in pairs[::-1])
        self.activation = activation

    def forward(self, maps: Tensor) -> Tensor:
        kept = []
        for layer in self.down[:-1]:
            maps = self.activation(layer(maps))
            size = maps.shape[2:]
            maps, places = F.max_pool3d(maps, 2, return_indices=True)
            kept.append((places, size))
        maps = self.activation(self.down[-1](maps))
        for layer in self.up[:-1]:
            maps = self.activation(layer(maps))
            places, size = kept.pop()
            maps = F.max_unpool3d(maps, places, 2, output_size=size)
        return torch.sigmoid(self.up[-1](maps))


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("elu", F.elu)])
def test_it_equals_the_report_s_model_in_plain_pytorch(activation: str, function: Any) -> None:
    model, plain = made(of_encoder={"activation": activation}), PlainAutoencoder(function)
    given = [*model.encoder.parameters(), *model.head.decoder.parameters()]
    for own, theirs in zip(given, plain.parameters(), strict=True):
        theirs.data.copy_(own)
    volumes = batch(2, SHAPE)["volumes"]
    volumes[:, 5:20, 3:14] = 0  # background, where all voxels of a pool are equal
    torch.testing.assert_close(model.head.reconstruct(model.encoder, volumes), plain(volumes[:, None])[:, 0])
    model.loss(batch(2, SHAPE) | {"volumes": volumes}).loss.backward()
    F.mse_loss(plain(volumes[:, None])[:, 0], volumes).backward()
    for own, theirs in zip(given, plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-3, atol=1e-6)


# ---- the residual model


def test_the_residual_block_is_the_published_one() -> None:
    model, volumes = made("srcae").eval(), batch(2, SHAPE)["volumes"]
    maps, sizes = volumes[:, None], []
    for block in model.encoder.layers:
        sizes.append(maps.shape[2:])
        hidden = F.elu(F.conv3d(maps, block.inner.weight, block.inner.bias, padding=1))
        maps = F.elu(F.conv3d(torch.cat([hidden, maps], 1), block.strided.weight, block.strided.bias, stride=2))
    torch.testing.assert_close(model.encoder(volumes), maps)
    for block, size in zip(model.head.decoder.layers, reversed(sizes), strict=True):
        hidden = F.elu(F.conv3d(maps, block.inner.weight, block.inner.bias, padding=1))
        short = [n - 2 * (m - 1) - 4 for n, m in zip(size, maps.shape[2:], strict=True)]
        weight, bias = block.strided.weight, block.strided.bias
        maps = F.conv_transpose3d(torch.cat([hidden, maps], 1), weight, bias, stride=2, output_padding=short)
        maps = maps if block is model.head.decoder.layers[-1] else F.elu(maps)
    torch.testing.assert_close(model.head.reconstruct(model.encoder, volumes), maps[:, 0].sigmoid())


def test_dropout_drops_whole_channels_in_training_only() -> None:
    model = made("srcae", shape=(7, 8, 9), of_encoder={"widths": (4,), "hidden": 20, "dropout": 0.3})
    seen: list[Tensor] = []
    block = model.encoder.layers[0]
    nn.init.zeros_(block.inner.weight)
    nn.init.ones_(block.inner.bias)
    block.strided.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, :20]))
    torch.manual_seed(0)
    model.train().encoder(batch(20)["volumes"])
    model.eval().encoder(batch(1)["volumes"])
    trained, evaluated = seen
    assert torch.equal(trained, trained[..., :1, :1, :1].expand_as(trained))
    assert trained.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs((trained[:, :, 0, 0, 0] == 0).float().mean() - 0.3) < 4 * (0.21 / 400) ** 0.5
    assert (evaluated == 1).all()


# ---- losses


def test_the_error_is_the_mean_square_over_the_mask() -> None:
    model, given = tiny().eval(), batch()
    mask = torch.rand(9, 8, 7, generator=torch.Generator().manual_seed(3)) < 0.4
    model.head.set_mask(mask)
    outcome = model.loss(given)
    reconstructed = model.head.reconstruct(model.encoder, given["volumes"]).detach().numpy()
    expected = [
        ((r - v)[mask.numpy()] ** 2).mean() for r, v in zip(reconstructed, given["volumes"].numpy(), strict=True)
    ]
    np.testing.assert_allclose(outcome.each, expected, rtol=1e-5)
    np.testing.assert_allclose(outcome.score[:, 0], expected, rtol=1e-5)
    other = tiny()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.head.mask, mask)


@pytest.mark.parametrize("mask", [torch.ones(7, 8, 9), torch.zeros(9, 8, 7)])
def test_a_mask_that_does_not_fit(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"does not fit volumes of \(9, 8, 7\)"):
        tiny().head.set_mask(mask)


def test_sequences_are_not_reconstructed() -> None:
    with pytest.raises(ValueError, match=r"examples are \(2, 9, 8, 7\), and reconstructed are single volumes"):
        tiny().loss(batch() | {"volumes": torch.rand(4, 2, 9, 8, 7)})


@pytest.mark.parametrize("alpha", [0.7, 0.2])
def test_auxiliary_losses_equal_a_plain_loop_and_missing_targets_count_nothing(alpha: float) -> None:
    model, given = tiny(targets=AUXILIARY, alpha=alpha).eval(), batch(targets=TRUTH)
    model.head.standardise(np.array([NAN, 40]), np.array([0.0, 8]))  # of a column of classes nothing is read
    outcome = model.loss(given)
    code = model.encoder(given["volumes"]).detach().numpy().mean(axis=(2, 3, 4))
    sex, age = (
        (code @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()) for layer in model.head.auxiliary
    )
    for i, (label, years) in enumerate(TRUTH.tolist()):
        losses = []
        if np.isfinite(label):
            losses.append(np.log(np.exp(sex[i]).sum()) - sex[i, int(label)])
        if np.isfinite(years):
            losses.append((age[i, 0] - (years - 40) / 8) ** 2)
        expected = alpha * outcome.score[i, 0].item() + (1 - alpha) * (np.mean(losses) if losses else 0)
        assert outcome.each[i].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(outcome.loss, outcome.each.mean())


def test_unknown_targets_alone_teach_the_reconstruction_only() -> None:
    model = tiny(targets=AUXILIARY)
    model.loss(batch(targets=torch.full((4, 2), NAN))).loss.backward()
    assert all((weight.grad == 0).all() for weight in model.head.auxiliary.parameters())
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    assert (model.encoder.layers[0][0].weight.grad != 0).any()


def test_noise_is_added_in_training_only_and_the_target_is_clean() -> None:
    model, given = tiny(noise=0.5), batch()
    seen: list[Tensor] = []
    model.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0]))
    mask = torch.zeros(9, 8, 7, dtype=torch.bool)
    mask[2:7] = True
    model.head.set_mask(mask)
    torch.manual_seed(0)
    outcome = model.train().loss(given)
    model.eval().loss(given)
    noise = seen[0] - given["volumes"]
    assert torch.equal(seen[1], given["volumes"])
    assert (noise[:, ~mask] == 0).all()
    assert noise[:, mask].std().item() == pytest.approx(0.5, rel=0.1)
    reconstructed = model.head.reconstruct(model.encoder, seen[0])
    expected = (reconstructed - given["volumes"]).square()[:, mask].mean(dim=1)
    torch.testing.assert_close(outcome.score[:, 0], expected.detach())


@pytest.mark.parametrize(("output", "least", "most"), [("sigmoid", 0, 1), ("linear", -1e9, 1e9)])
def test_output(output: str, least: float, most: float) -> None:
    model = tiny(output=output)
    nn.init.constant_(model.head.decoder.layers[-1].bias, 5)
    reconstructed = model.head.reconstruct(model.encoder, batch()["volumes"])
    assert (reconstructed.max() > 1) == (output == "linear")
    assert least <= reconstructed.min() <= reconstructed.max() <= most


# ---- variational


def variational(**settings: Any) -> Model:
    return tiny("variational", **settings)


def test_kl_is_that_of_torch_distributions() -> None:
    model, given = variational(kl=3.0, warm_up_steps=1), batch()
    for weight in model.head.code_log_variance.parameters():
        nn.init.normal_(weight)
    model.head.steps.fill_(1)
    mean, log_variance = model.head.distribution(model.encoder(given["volumes"]))
    assert mean.shape == (4, *model.encoder.output_shape)
    divergence = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).flatten(1)
    torch.testing.assert_close(model.head.kl_of_units(model.encoder, given["volumes"]), divergence.mean(dim=0))
    outcome = model.eval().loss(given)
    torch.testing.assert_close(outcome.each - outcome.score[:, 0], (3 * divergence.sum(dim=1) / 504).detach())


def test_loss_is_the_evidence_lower_bound_up_to_a_constant() -> None:
    """Of voxels with normal noise of variance kl / 2, where the code is its mean."""
    model, given, variance = variational(kl=0.5, warm_up_steps=0), batch(), 0.25
    model.head.steps.fill_(1)
    each = model.eval().loss(given).each
    reconstructed = model.head.reconstruct(model.encoder, given["volumes"])
    likelihood = Normal(reconstructed, variance**0.5).log_prob(given["volumes"]).sum(dim=(1, 2, 3))
    mean, log_variance = model.head.distribution(model.encoder(given["volumes"]))
    divergence = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3, 4))
    bound = likelihood - divergence
    scaled = -2 * variance / 504 * (bound + 504 / 2 * np.log(2 * np.pi * variance))
    torch.testing.assert_close(each, scaled.detach())


def test_the_code_is_drawn_in_training_only() -> None:
    model, given = variational(), batch(400)
    seen: list[Tensor] = []
    model.head.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    nn.init.constant_(model.head.code_log_variance.bias, 2 * np.log(0.3))
    nn.init.zeros_(model.head.code_log_variance.weight)
    torch.manual_seed(0)
    model.train().loss(given)
    model.eval().loss(given)
    model.head.reconstruct(model.encoder, given["volumes"])
    mean = model.head.distribution(model.encoder(given["volumes"]))[0]
    assert torch.equal(seen[1], mean)
    assert torch.equal(seen[2], mean)
    assert ((seen[0] - mean) / 0.3).std().item() == pytest.approx(1, rel=0.05)


def test_warm_up_survives_being_saved(tmp_path: Path) -> None:
    model, given = variational(kl=2.0, warm_up_steps=4), batch()

    def weight(of: Model) -> float:
        outcome = of.eval().loss(given)
        units = of.head.kl_of_units(of.encoder, given["volumes"])
        return ((outcome.loss - outcome.score.mean()) / units.sum() * 504).item()

    weights = [weight(model)]
    for _ in range(2):
        model.train().loss(given)
        weights.append(weight(model))
    resumed = variational(kl=2.0, warm_up_steps=4)
    resumed.load_state_dict(model.state_dict())
    for _ in range(3):
        resumed.train().loss(given)
        weights.append(weight(resumed))
    assert weights == pytest.approx([0, 0.5, 1, 1.5, 2, 2], abs=1e-3)


def test_a_collapsed_posterior_shows() -> None:
    model, given = variational(), batch()
    assert model.head.kl_of_units(model.encoder, given["volumes"]).max() > 1e-3
    for weight in [*model.head.code_mean.parameters(), *model.head.code_log_variance.parameters()]:
        nn.init.zeros_(weight)
    assert (model.head.kl_of_units(model.encoder, given["volumes"]) == 0).all()


# ---- weights


@pytest.mark.parametrize("encoder", ["cae", "srcae"])
def test_kaiming_initialisation(encoder: str) -> None:
    for _, module in made(encoder).named_modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            variance, n = 2 / module.weight[0].numel(), module.weight.numel()
            assert abs(module.weight.var() / variance - 1) < 4 * (2 / n) ** 0.5
            assert (module.bias == 0).all()


def test_frames_give_the_mean_of_their_features() -> None:
    model = tiny()
    clips = torch.rand(3, 2, 9, 8, 7)
    torch.testing.assert_close(model.encoder(clips), torch.stack([model.encoder(clip).mean(dim=0) for clip in clips]))


def test_normalisation_stands_between_convolution_and_activation() -> None:
    model = made("cae", shape=(7, 8, 9), of_encoder={"widths": (4, 3), "normalisation": "batch"}).train()
    code = model.encoder(batch(50)["volumes"])
    assert (code >= 0).all()
    assert 0.3 < (code == 0).float().mean() < 0.7  # normalised before ReLU, half is negative
    decoder = model.head.decoder.layers
    assert [sum(isinstance(part, BatchNorm) for part in layer.modules()) for layer in decoder] == [
        1,
        0,
    ]  # not the output


# ---- DeepLight's decoder


@pytest.mark.parametrize("shape", [(7, 8, 9), (34, 41, 3), (1, 2, 2)])
def test_deeplight_s_mirror_restores_any_slice(shape: tuple[int, int, int]) -> None:
    model = made("deeplight", shape=shape, output="linear")
    model.loss(batch(2, shape)).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_deeplight_s_mirror_has_the_encoder_s_layers_in_reverse() -> None:
    mirror = SliceEncoder((91, 109, 3), DeepLightSettings()).mirror()
    assert mirror(torch.rand(1, 128)).shape == (1, 3, 109, 91)
    assert mirror.slice_features.out_features == 768
    widths = [(layer.in_channels, layer.out_channels, layer.stride[0]) for layer in mirror.convolutions]
    assert widths == [
        (64, 64, 1), (64, 64, 2), (64, 64, 1), (64, 32, 2), (32, 32, 1), (32, 32, 2), (32, 32, 1), (32, 16, 2),
        (16, 16, 1), (16, 16, 2), (16, 16, 1), (16, 1, 1),
    ]  # fmt: skip


def test_no_unit_of_deeplight_s_mirror_is_lost_below_zero() -> None:
    """Learning the mean volume pushes all units below zero; the features must be able to bring them back."""
    mirror = SliceEncoder((7, 8, 5), DeepLightSettings()).mirror()
    mirror.initialise()
    with torch.no_grad():
        for layer in (mirror.slice_features, *mirror.convolutions):
            layer.bias.fill_(-3)
    features = torch.rand(2, 128, requires_grad=True)
    mirror(features).sum().backward()
    assert (features.grad != 0).all()


def test_deeplight_learns_the_mean_volume() -> None:
    """What a volume has in common with all others, slice by slice, is learnt within some steps."""
    model, given = made("deeplight", shape=(7, 8, 5), output="linear").train(), batch(4, (7, 8, 5))
    pattern = 2 * torch.randn(5, 8, 7, generator=torch.Generator().manual_seed(5))
    given["volumes"] = pattern + 0.1 * given["volumes"]
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        loss = model.loss(given).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.1 * pattern.square().mean()
