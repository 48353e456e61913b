import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeplight_core.models import ENCODERS
from deeplight_core.models.deeplight import DeepLight, SameConv2d, SliceEncoder, same_padding
from deeplight_core.routes import DeepLightSettings, ReadoutSettings

CHANNELS = (16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)

SHAPE = (7, 8, 9)
NO_DROPOUT = DeepLightSettings(initialisation="he", conv_dropout=(0, 0, 0), lstm_dropout=0)


def build(
    shape: tuple[int, int, int] = SHAPE, n_states: int = 4, settings: DeepLightSettings = NO_DROPOUT,
    seed: int = 0, dropout: float = 0.0,
) -> DeepLight:  # fmt: skip
    torch.manual_seed(seed)
    return DeepLight(shape, n_states, settings, ReadoutSettings(dropout=dropout))


def volumes(n: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(n, *shape[::-1], generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def paper() -> DeepLight:
    """The paper's decoder, on HCP's grid."""
    torch.manual_seed(0)
    return DeepLight()


# ---- architecture


def test_registered() -> None:
    assert ENCODERS["deeplight"] is SliceEncoder


def test_size_on_the_grid_of_hcp(paper: DeepLight) -> None:
    assert (paper.encoder.shape, len(paper.head.targets)) == ((91, 109, 91), 16)
    assert sum(p.numel() for p in paper.parameters()) == 597_856
    assert paper.encoder.slice_features == 768  # 4 rows × 3 columns × 64 channels
    layers = [(c.in_channels, c.out_channels, c.stride[0], c.dropout) for c in paper.encoder.convolutions]
    channels = [16] * 4 + [32] * 4 + [64] * 4
    strides = [1, 1, 2, 1] + [2, 1] * 4
    assert layers == list(zip([1, *channels[:-1]], channels, strides, [0.0] * 4 + [0.2] * 4 + [0.4] * 4, strict=True))
    assert (paper.encoder.lstm_dropout, paper.head.settings.dropout) == (0.5, 0.5)
    assert paper.head.weight.shape == (16, 128)


@torch.no_grad()
def test_slices_of_hcp_end_as_4_by_3_by_64(paper: DeepLight) -> None:
    assert paper.encoder.convolutions(torch.zeros(1, 1, 109, 91)).shape == (1, 64, 4, 3)


# ---- layers


def test_layers_have_the_shapes_that_pass_through_them() -> None:
    shape = (35, 44, 5)
    model, seen = build(shape).eval(), {}
    for name, module in model.named_modules():
        if isinstance(module, (SameConv2d, torch.nn.LSTM, torch.nn.Linear)):
            module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    with torch.no_grad():
        model(volumes(1, shape))
    layers = {layer.name: layer for layer in model.layers()}
    assert list(layers) == list(seen)
    assert layers["head"].output_shape == seen["head"][1][0].shape
    assert layers["encoder.lstm"].output_shape == seen["encoder.lstm"][1][1][0][:, 0].shape
    for name, layer in list(layers.items())[:-2]:
        given, output = seen[name]
        assert layer.output_shape == output.shape
        assert layer.stride == round(given.shape[2] / output.shape[2])
        assert layer.kernel == 3


def test_layers_have_all_parameters_and_the_flops_that_pytorch_counts() -> None:
    shape, n_volumes = (35, 44, 5), 3
    model = build(shape).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(volumes(n_volumes, shape))
    counted = counter.get_flop_counts()
    for layer in model.layers():
        assert layer.n_parameters == sum(p.numel() for p in model.get_submodule(layer.name).parameters())
        if layer.kind != "lstm":  # PyTorch counts none for the fused one
            assert n_volumes * layer.flops == sum(counted[f"DeepLight.{layer.name}"].values())
    assert sum(layer.n_parameters for layer in model.layers()) == sum(p.numel() for p in model.parameters())


def test_lstm_flops_are_those_of_its_gates() -> None:
    model = build((35, 44, 5))
    into = model.encoder.slice_features + 64  # the slice's features and the state before it
    lstm = next(layer for layer in model.layers() if layer.kind == "lstm")
    assert lstm.flops == 5 * 2 * (4 * 64) * into * 2  # slices, directions, gates, and a product and a sum each


def test_layers_of_the_paper(paper: DeepLight) -> None:
    layers = paper.layers()
    assert [layer.kind for layer in layers] == ["convolution"] * 12 + ["lstm", "linear"]
    assert layers[0].output_shape == (91, 16, 109, 91)
    assert math.prod(layers[11].output_shape[1:]) == 768
    assert math.prod(layers[12].output_shape) == 128
    assert layers[13].output_shape == (16,)


@pytest.mark.parametrize(
    ("n", "stride", "padding"),
    [(5, 1, (1, 1)), (6, 1, (1, 1)), (5, 2, (1, 1)), (6, 2, (0, 1)), (1, 1, (1, 1)), (1, 2, (1, 1)), (2, 2, (0, 1))],
)
def test_same_padding_puts_the_odd_one_after(n: int, stride: int, padding: tuple[int, int]) -> None:
    assert same_padding(n, stride) == padding


def convolved(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's SAME convolution and ReLU, one output at a time."""
    n, _, height, width = maps.shape
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    top = max((rows - 1) * stride + 3 - height, 0) // 2
    left = max((columns - 1) * stride + 3 - width, 0) // 2
    out = np.zeros((n, len(weight), rows, columns))
    for image, channel, i, j in np.ndindex(*out.shape):
        total = bias[channel]
        for a, b in np.ndindex(3, 3):
            y, x = i * stride + a - top, j * stride + b - left
            if 0 <= y < height and 0 <= x < width:
                total += weight[channel, :, a, b] @ maps[image, :, y, x]
        out[image, channel, i, j] = max(total, 0)
    return out


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (6, 8), (5, 8), (8, 5), (1, 4), (2, 1)])
@torch.no_grad()
def test_convolution_equals_a_loop(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    layer = SameConv2d(2, 3, stride, dropout=0.4).eval()
    maps = torch.randn(2, 2, *size)
    expected = convolved(maps.numpy(), layer.weight.numpy(), layer.bias.numpy(), stride)
    mirrored = layer(maps.flip(2, 3)).flip(2, 3)  # it works on mirrored maps
    assert mirrored.shape == expected.shape
    np.testing.assert_allclose(mirrored, expected, rtol=1e-5, atol=1e-5)  # float32 sums of 18 terms


@pytest.mark.parametrize("p", [0, 0.4])
def test_gradients_in_place_equal_those_of_plain_functions(p: float) -> None:
    """ReLU and whole-channel dropout, forward and backward, as PyTorch differentiates them by itself."""
    torch.manual_seed(0)
    layer = SameConv2d(3, 5, stride=2, dropout=p).train()
    maps, weights = torch.randn(4, 3, 7, 9, requires_grad=True), torch.randn(4, 5, 4, 5)
    kept = (torch.rand(4, 5) >= p) / (1 - p) if p else None
    ours = torch.autograd.grad((layer(maps, kept) * weights).sum(), [maps, layer.weight, layer.bias])
    plain = F.relu(F.conv2d(maps, layer.weight.flip(2, 3), layer.bias, 2, 1))
    plain = plain if kept is None else plain * kept[:, :, None, None]
    expected = torch.autograd.grad((plain * weights).sum(), [maps, layer.weight, layer.bias])
    for one, other in zip(ours, expected, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


def spoil_free_memory() -> None:
    """Let what is allocated next find NaN there."""
    _ = [torch.full((n,), torch.nan) for n in (512, 4096, 36864, 73728)]


@pytest.mark.parametrize("size", [(5, 7), (6, 8), (3, 1), (1, 1), (1, 3), (2, 1)])
def test_gradients_in_bfloat16(size: tuple[int, int]) -> None:
    """On a CPU, oneDNN's are garbage where it pads maps of width 1 itself."""
    torch.manual_seed(0)
    layer = SameConv2d(16, 32, stride=2, dropout=0).to(memory_format=torch.channels_last)
    maps = torch.randn(30, 16, *size).contiguous(memory_format=torch.channels_last)
    gradients = []
    for enabled in (False, True):
        spoil_free_memory()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = layer(maps)
        gradients.append(torch.autograd.grad(out.float().square().sum(), layer.weight)[0])
    single, half = gradients
    assert (half - single).norm() < 0.02 * single.norm()  # bfloat16 has 8 binary places


@torch.no_grad()
def test_slice_features_are_in_the_order_of_y_x_channel() -> None:
    shape = (33, 65, 2)  # slices end as 3 rows × 2 columns
    model, given = build(shape).eval(), volumes(2, shape)
    seen: list[Tensor] = []
    model.encoder.lstm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(given)
    for b, z in np.ndindex(2, 2):
        maps = model.encoder.convolutions(given[b, z][None, None])[0]
        expected = torch.stack([maps[c, y, x] for y in range(3) for x in range(2) for c in range(64)])
        torch.testing.assert_close(seen[0][b, z], expected)


def lstm_state(slices: np.ndarray, weights: dict[str, np.ndarray], direction: str) -> np.ndarray:
    """The last hidden state of an LSTM (Hochreiter & Schmidhuber 1997, with Gers' forget gate), slice by slice."""

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    h = c = np.zeros(64)
    for features in slices:
        gates = sum(weights[f"bias_{kind}_l0{direction}"] for kind in ("ih", "hh"))
        gates = gates + weights[f"weight_ih_l0{direction}"] @ features + weights[f"weight_hh_l0{direction}"] @ h
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


@torch.no_grad()
def test_features_are_the_last_states_of_both_directions() -> None:
    model, given = build().eval(), volumes(1)
    slices = model.encoder.convolutions(given[0, :, None]).permute(0, 2, 3, 1).reshape(9, 64).numpy()
    weights = {name: weight.numpy() for name, weight in model.encoder.lstm.named_parameters()}
    up, down = lstm_state(slices, weights, ""), lstm_state(slices[::-1], weights, "_reverse")
    np.testing.assert_allclose(model.encoder(given)[0], np.concatenate([up, down]), atol=1e-5)
    logits = model.head.weight.numpy() @ np.concatenate([up, down]) + model.head.bias.numpy()
    np.testing.assert_allclose(model(given)[0], logits, atol=1e-5)


@torch.no_grad()
def test_reversed_slices_with_swapped_directions_swap_the_features() -> None:
    model, swapped = build().eval(), build().eval()
    weights = dict(model.encoder.lstm.named_parameters())
    for name, weight in swapped.encoder.lstm.named_parameters():
        weight.copy_(weights[name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"])
    up, down = model.encoder(volumes()).split(64, dim=1)
    swapped_up, swapped_down = swapped.encoder(volumes().flip(1)).split(64, dim=1)
    torch.testing.assert_close((swapped_up, swapped_down), (down, up))
    assert not torch.allclose(up, down)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 8, 1), (1, 8, 9), (7, 1, 9), (34, 5, 2), (12, 14, 11)])
@pytest.mark.parametrize("n_states", [1, 2, 20])
def test_any_grid_and_any_number_of_states(shape: tuple[int, int, int], n_states: int) -> None:
    model = build(shape, n_states, DeepLightSettings(), dropout=0.5)
    loss, _, _, answer = model.loss({"volumes": volumes(2, shape), "targets": torch.tensor([0, n_states - 1])})
    loss.backward()
    assert answer.shape == (2, n_states)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---- initialisation


def test_glorot_initialisation(paper: DeepLight) -> None:
    fans = {
        f"encoder.convolutions.{i}": (9 * c, 9 * d)
        for i, (c, d) in enumerate(zip((1, *CHANNELS), CHANNELS, strict=False))
    }
    lstm = {
        f"encoder.lstm.weight_{kind}_l0{way}": (768 + 64, 4 * 64) for kind in ("ih", "hh") for way in ("", "_reverse")
    }
    check_spread(paper, {f"{name}.weight": 2 / sum(fan) for name, fan in fans.items()})
    check_spread(paper, {name: 2 / sum(fan) for name, fan in lstm.items()})
    check_spread(paper, {"head.weight": 2 / (128 + 16)})


def test_he_initialisation() -> None:
    model = build()
    check_spread(model, {f"encoder.convolutions.{i}.weight": 2 / (9 * c) for i, c in enumerate((1, *CHANNELS[:-1]))})
    check_spread(model, {"encoder.lstm.weight_ih_l0": 2 / (64 + 64 + 4 * 64), "head.weight": 2 / (128 + 4)})


def check_spread(model: DeepLight, variances: dict[str, float]) -> None:
    """Mean and variance of normal draws, within four standard errors."""
    for name, variance in variances.items():
        weight = model.get_parameter(name).detach()
        assert abs(weight.mean()) < 4 * math.sqrt(variance / weight.numel()), name
        assert abs(weight.var() / variance - 1) < 4 * math.sqrt(2 / weight.numel()), name


def test_biases_are_zero_but_the_forget_gates() -> None:
    for name, bias in build(settings=DeepLightSettings(), dropout=0.5).named_parameters():
        if "bias" in name:
            expected = torch.zeros_like(bias)
            if "bias_ih" in name:
                expected[64:128] = 1
            assert torch.equal(bias, expected), name


def test_same_seed_same_weights() -> None:
    one, same, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


# ---- dropout


def dropped_maps(model: DeepLight, given: Tensor) -> list[Tensor]:
    """Outputs of all convolutions where each would give 1 everywhere."""
    seen: list[Tensor] = []
    for layer in model.encoder.convolutions:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output.detach().clone()))
    model(given)
    return seen


def test_dropout_drops_whole_channels_of_each_slice_in_its_groups() -> None:
    shape = (34, 40, 30)
    model = build(shape, settings=DeepLightSettings(conv_dropout=(0.0, 0.2, 0.4))).train()
    torch.manual_seed(0)
    for layer, maps in enumerate(dropped_maps(model, volumes(2, shape))):
        p = (0.0, 0.2, 0.4)[layer // 4]
        first = maps[:, :, :1, :1]
        assert torch.equal(maps, first.expand_as(maps))  # a channel as a whole
        assert {round(v, 4) for v in first.unique().tolist()} == {round(1 / (1 - p), 4)} | ({0.0} if p else set())
        share = (first == 0).float()
        assert abs(share.mean() - p) <= 4 * math.sqrt(p * (1 - p) / first.numel()), layer
        if p:
            assert share.reshape(60, -1).unique(dim=0).shape[0] > 50  # each slice has its own draw


def test_no_dropout_outside_training() -> None:
    model = build(settings=DeepLightSettings(), dropout=0.5).eval()
    assert torch.equal(model(volumes()), model(volumes()))
    for maps in dropped_maps(model, volumes()):
        assert (maps == 1).all()


def test_dropout_on_the_inputs_of_lstm_and_output_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(
        settings=DeepLightSettings(initialisation="he", conv_dropout=(0, 0, 0), lstm_dropout=0.3), dropout=0.6
    )
    dropped_maps(model, volumes(1))  # from here on all slice features are 1
    seen: dict[str, Tensor] = {}
    model.encoder.lstm.register_forward_pre_hook(lambda _, inputs: seen.update(lstm=inputs[0]))
    linear = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (seen.update(head=x), linear(self, x))[1])
    torch.manual_seed(0)
    model.train()(volumes(40))
    assert abs((seen["lstm"] == 0).float().mean() - 0.3) < 4 * math.sqrt(0.21 / seen["lstm"].numel())
    assert abs((seen["head"] == 0).float().mean() - 0.6) < 4 * math.sqrt(0.24 / seen["head"].numel())
    kept = seen["lstm"][seen["lstm"] != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))


# ---- learning


def test_loss_is_the_cross_entropy() -> None:
    model, labels = build().eval(), torch.tensor([2, 0, 3])
    loss, each, score, answer = model.loss({"volumes": volumes(), "targets": labels})
    logits = model(volumes()).detach().numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer, p, rtol=1e-5)
    assert score[:, 0].tolist() == [p[i].argmax() == label for i, label in enumerate(labels)]
    assert loss.item() == pytest.approx(-np.mean([np.log(p[i, label]) for i, label in enumerate(labels)]), abs=1e-5)
    assert each.mean() == loss
    assert each.tolist() == pytest.approx([-np.log(p[i, label]) for i, label in enumerate(labels)], abs=1e-5)


def test_one_batch_can_be_overfitted() -> None:
    model = build()
    batch = {"volumes": volumes(8), "targets": torch.arange(8) % 4}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        loss, _, score, _ = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert (score == 1).all()


@torch.no_grad()
def test_volumes_of_a_batch_do_not_meet() -> None:
    model = build().eval()
    together = model(volumes(5))
    apart = torch.cat([model(volume[None]) for volume in volumes(5)])
    torch.testing.assert_close(together, apart)
