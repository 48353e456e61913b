"""Relevance against zennit, captum and a plain loop, and its sum against the logit, in double precision."""

import math
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vision  # noqa: F401  # before zennit
import zennit.composites
import zennit.rules
from conftest import SHAPE
from torch import Tensor, nn

from deeplight_core.analysis.attribution import METHODS, Method, explain
from deeplight_core.models import ENCODERS, build

TARGETS = torch.tensor([0, 2, 1])
LRP = [
    Method(rule=rule, first=first, epsilon=1e-2)
    for rule in ("epsilon", "alpha2beta1", "gamma")
    for first in ("same", "flat", "wsquare")
]
NAMES = [f"{method.rule}, {method.first}" for method in LRP]


def randomised(model: nn.Module) -> nn.Module:
    """In double precision, with biases and running statistics that are not what they start with."""
    random = torch.Generator().manual_seed(3)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dim() == 1 and "batches" not in name:
            tensor.data += 0.3 * torch.rand(tensor.shape, generator=random)
    return model.double()


def volumes(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- the sum is the logit, for every encoder

ENCODER_SETTINGS: dict[str, dict[str, Any]] = {
    "deeplight": {"initialisation": "he"},
    "deeplight3d": {"widths": (4,) * 4 + (6,) * 8},
    "cae": {"widths": (5, 6), "normalisation": "batch"},
    "srcae": {"widths": (4,), "hidden": 3},
    "clip": {"frames": 2, "widths": (2, 3, 4, 4, 4, 6), "features": 8},
}


def decoder(encoder: str) -> nn.Module:
    torch.manual_seed(0)
    architecture = {
        "encoder": {"name": encoder, "shape": list(SHAPE), "settings": ENCODER_SETTINGS[encoder]},
        "head": {"name": "classes", "targets": [["T", s] for s in "abc"], "settings": {"hidden": 5}},
    }
    return randomised(build(architecture))


# they resize, clip and pool as no rule covers
PHOTOGRAPHS = ("resnet18", "efficientnet_lite0", "r3d_18", "medicalnet", "sfcn")


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name not in PHOTOGRAPHS])
@pytest.mark.parametrize("method", LRP[:2] + LRP[3::3] + LRP[-1:], ids=NAMES[:2] + NAMES[3::3] + NAMES[-1:])
def test_relevance_of_voxels_biases_and_stabiliser_add_up_to_the_logit(encoder: str, method: Method) -> None:
    frames = (2,) if encoder == "clip" else ()
    found = explain(decoder(encoder), volumes(*frames, *SHAPE[::-1]), TARGETS, method)
    assert found.voxels.shape == (3, *frames, *SHAPE[::-1])
    assert (found.residual.abs() < 1e-9 * found.logit.abs()).all()
    for part in (found.biases, found.stabiliser):
        assert (part.abs() > 1e-9).all()  # the sum needs both


@pytest.mark.parametrize("encoder", PHOTOGRAPHS)
def test_networks_for_photographs_are_explained_by_gradients_only(encoder: str) -> None:
    widths = {"efficientnet_lite0": (4,) * 8 + (6,), "sfcn": (4,) * 6}.get(encoder, (4, 4, 4, 6))
    architecture = {
        "encoder": {"name": encoder, "shape": list(SHAPE), "settings": {"widths": widths, "window": (-4, 4)}},
        "head": {"name": "classes", "targets": [["T", s] for s in "abc"], "settings": {"dropout": 0.0}},
    }
    model, seen = randomised(build(architecture)), volumes(*SHAPE[::-1])
    with pytest.raises(
        ValueError, match=r"LRP is not defined for the function .*; take gradient or integrated-gradients"
    ):
        explain(model, seen, TARGETS, METHODS["lrp-gamma"])
    assert explain(model, seen, TARGETS, METHODS["gradient"]).voxels.shape == seen.shape


def test_an_example_is_explained_by_itself_alone() -> None:
    """Its share of biases and stabiliser, too, whatever else is in the batch."""
    model, seen, method = decoder("deeplight"), volumes(*SHAPE[::-1]), METHODS["lrp-gamma"]
    together = explain(model, seen, TARGETS, method)
    alone = explain(model, seen[1:2], TARGETS[1:2], method)
    for one, all_of in zip(alone, together, strict=True):
        torch.testing.assert_close(one, all_of[1:2])


def test_the_model_is_left_as_it_was() -> None:
    model = decoder("cae").train()
    model.encoder.layers[0].eval()
    model.head.bias.requires_grad_(False)
    before = [(part.training) for part in model.modules()], [p.requires_grad for p in model.parameters()]
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    explain(model, volumes(*SHAPE[::-1]), TARGETS, METHODS["lrp-epsilon"])
    assert ([part.training for part in model.modules()], [p.requires_grad for p in model.parameters()]) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_single_precision_agrees() -> None:
    model, seen = decoder("deeplight"), volumes(*SHAPE[::-1])
    exact = explain(model, seen, TARGETS, METHODS["lrp-epsilon"])
    found = explain(model.float(), seen.float(), TARGETS, METHODS["lrp-epsilon"])
    assert found.voxels.dtype == torch.float32
    torch.testing.assert_close(found.logit.double(), exact.logit, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.voxels.double(), exact.voxels, rtol=1e-2, atol=1e-4 * exact.voxels.abs().max())


# ---- against zennit


class Pooled(nn.Sequential):
    """Layers that zennit knows; a convolution with results of both signs passes relevance on, and one gets them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 8, 3, 2, 1), nn.Identity(),
            nn.BatchNorm3d(8), nn.Conv3d(8, 8, 1), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip


@pytest.mark.parametrize("method", LRP, ids=NAMES)
def test_relevance_equals_zennits(method: Method) -> None:
    """Zennit rules have a small stabiliser everywhere, ours where the rule has one: hence the tolerance."""
    rules = {
        "epsilon": zennit.rules.Epsilon(method.epsilon),
        "alpha2beta1": zennit.rules.AlphaBeta(2, 1, stabilizer=1e-12),
        "gamma": zennit.rules.Gamma(method.gamma, stabilizer=1e-12),
        "flat": zennit.rules.Flat(stabilizer=1e-12),
        "wsquare": zennit.rules.WSquare(stabilizer=1e-12, zero_params="bias"),
    }
    first = method.rule if method.first == "same" else method.first
    by_layer = [("0", rules[first]), ("3", rules[method.rule].copy()), ("6", rules[method.rule].copy())]
    by_layer += [(name, zennit.rules.Epsilon(method.epsilon)) for name in ("5", "10")]
    # average pooling is linear: LRP-0 is zennit's Norm without a stabiliser
    by_layer += [("8", zennit.rules.Norm(stabilizer=lambda z: torch.where(z == 0, 1.0, z)))]
    composite = zennit.composites.NameMapComposite([([name], rule) for name, rule in by_layer])
    model, seen = randomised(Pooled()).eval(), volumes(2, 8, 9, 14)
    given = seen.clone().requires_grad_(True)
    with composite.context(model) as changed:
        (expected,) = torch.autograd.grad(
            changed(given), given, torch.eye(3, dtype=torch.float64)[TARGETS] * model(seen).detach()
        )
    found = explain(model, seen, TARGETS, method)
    torch.testing.assert_close(found.voxels, expected, rtol=1e-6, atol=1e-9)
    assert (found.residual.abs() < 1e-9 * found.logit.abs()).all()


def test_contributions_of_one_sign_get_all_relevance() -> None:
    """With α = 2, β = 1 and no negative contribution, the formula would make the relevance twice what it was."""
    model = nn.Sequential(nn.Conv1d(1, 1, 2, bias=False), nn.Flatten()).double()
    for weights, expected in (([1.0, 3.0], [2.0, 9.0]), ([-1.0, -3.0], [-2.0, -9.0]), ([1.0, -1.0], [-2.0, 1.0])):
        model[0].weight.data = torch.tensor([[weights]], dtype=torch.float64)
        found = explain(
            model, torch.tensor([[[2.0, 3.0]]], dtype=torch.float64), torch.tensor([0]), METHODS["lrp-alpha2beta1"]
        )
        torch.testing.assert_close(found.voxels[0, 0], torch.tensor(expected, dtype=torch.float64))


# ---- against a plain loop


class Recurrent(nn.Module):
    """One LSTM up, one down, and a linear layer on the last states, as in DeepLight."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 4, batch_first=True, bidirectional=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[1][0].movedim(0, 1).flatten(1))


def looped(
    x: np.ndarray, weights: dict[str, np.ndarray], target: int, epsilon: float
) -> tuple[np.ndarray, float, float]:
    """Arras et al. (2017) for one series (T, F), unit by unit: relevance (T, F), what biases and ε got."""
    lost = {"biases": 0.0, "epsilon": 0.0}

    def shared(parts: list[float], bias: float, relevance: float) -> list[float]:
        z = sum(parts) + bias
        sign = 1.0 if z >= 0 else -1.0
        lost["biases"] += bias / (z + epsilon * sign) * relevance
        lost["epsilon"] += epsilon * sign / (z + epsilon * sign) * relevance
        return [part / (z + epsilon * sign) * relevance for part in parts]

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    n, found, last, kept = 4, np.zeros_like(x), [], {}
    for suffix in ("", "_reverse"):
        w_x, w_h = weights[f"lstm.weight_ih_l0{suffix}"], weights[f"lstm.weight_hh_l0{suffix}"]
        b = weights[f"lstm.bias_ih_l0{suffix}"] + weights[f"lstm.bias_hh_l0{suffix}"]
        series, h, c, trace = x[::-1] if suffix else x, np.zeros(n), np.zeros(n), []
        for step in series:
            i, f, g, o = np.split(w_x @ step + w_h @ h + b, 4)
            trace.append((step, h, sigmoid(f) * c, sigmoid(i) * np.tanh(g)))
            c = trace[-1][2] + trace[-1][3]
            h = sigmoid(o) * np.tanh(c)
        last.append(h)
        kept[suffix] = w_x[2 * n : 3 * n], w_h[2 * n : 3 * n], b[2 * n : 3 * n], trace
    states, w, bias = np.concatenate(last), weights["head.weight"][target], weights["head.bias"][target]
    of_states = shared(list(w * states), bias, float(w @ states + bias))
    for which, suffix in enumerate(("", "_reverse")):
        w_x, w_h, b, trace = kept[suffix]
        of_h, of_c = np.array(of_states[which * n : (which + 1) * n]), np.zeros(n)
        places = list(range(len(x)))[::-1] if suffix else list(range(len(x)))
        for place, (step, h, old, new) in zip(places[::-1], trace[::-1], strict=True):
            of_c = of_c + of_h  # the output gate is a constant
            of_h, of_old = np.zeros(n), np.zeros(n)
            for k in range(n):
                of_old[k], of_new = shared([old[k], new[k]], 0.0, of_c[k])
                given = shared([*(w_x[k] * step), *(w_h[k] * h)], b[k], of_new)
                found[place] += given[: len(step)]
                of_h += given[len(step) :]
            of_c = of_old
    return found, lost["biases"], lost["epsilon"]


def test_relevance_through_both_lstms_equals_a_plain_loop() -> None:
    model, seen = randomised(Recurrent()), volumes(6, 5)
    found = explain(model, seen, TARGETS, Method(epsilon=1e-2))
    weights = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    for b, target in enumerate(TARGETS):
        voxels, biases, epsilon = looped(seen[b].numpy(), weights, int(target), 1e-2)
        np.testing.assert_allclose(found.voxels[b], voxels, rtol=1e-9, atol=1e-12)
        assert found.biases[b].item() == pytest.approx(biases, rel=1e-9)
        assert found.stabiliser[b].item() == pytest.approx(epsilon, rel=1e-9)


# ---- gradients


def test_integrated_gradients_equal_captums() -> None:
    model, seen = decoder("deeplight").float(), volumes(*SHAPE[::-1]).float()
    found = explain(model, seen, TARGETS, Method(kind="integrated", steps=8))
    expected = captum.attr.IntegratedGradients(model.eval()).attribute(seen, target=TARGETS, n_steps=8)
    torch.testing.assert_close(found.voxels, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert (found.residual.abs() < 0.05 * found.logit.abs()).all()  # quadrature
    torch.testing.assert_close(found.biases, model(torch.zeros_like(seen))[range(3), TARGETS].detach())


def test_gradient_times_input_equals_captums() -> None:
    model, seen = decoder("cae").float(), volumes(*SHAPE[::-1]).float()
    found = explain(model, seen, TARGETS, METHODS["gradient"])
    expected = captum.attr.InputXGradient(model.eval()).attribute(seen.requires_grad_(True), target=TARGETS)
    torch.testing.assert_close(found.voxels, expected)


# ---- where LRP is not defined


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.sigmoid(x)).flatten(1)


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (1 / x).flatten(1)


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).flatten(1)


@pytest.mark.parametrize(
    ("model", "function"),
    [
        (Gated(), "sigmoid"),
        (Inverse(), "reciprocal|div"),
        (Shifted(), "add"),
        (nn.Sequential(nn.Flatten(), nn.Softmax(dim=1)), "softmax"),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(6)), "layer_norm"),
        (nn.Sequential(nn.Conv1d(2, 2, 3, padding="same"), nn.Flatten()), "padding='same'"),
        (nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Flatten()), "batch_norm without running"),
        (nn.Sequential(nn.ELU(inplace=True), nn.Flatten()), "elu in place"),
    ],
    ids=["gate", "inverse", "constant", "softmax", "layer norm", "same", "batch norm", "in place"],
)
def test_a_function_without_a_rule_is_refused_by_name(model: nn.Module, function: str) -> None:
    seen = torch.randn(3, 2, 3)
    with pytest.raises(ValueError, match=f"LRP is not defined for .*({function}).* take gradient or"):
        explain(model, seen, TARGETS, METHODS["lrp-epsilon"])
    if "in place" not in function:
        explain(model, seen, TARGETS, METHODS["gradient"])


def test_every_activation_passes_relevance_on() -> None:
    for activation in (F.elu, F.leaky_relu, F.gelu, F.silu, torch.tanh, F.relu6, F.hardtanh, F.softsign, F.relu):

        class Curved(nn.Module):
            def __init__(self, function: Any) -> None:
                super().__init__()
                self.function, self.first = function, nn.Linear(6, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.function(self.first(x.flatten(1)))

        torch.manual_seed(0)
        found = explain(randomised(Curved(activation)), volumes(2, 3), TARGETS, Method(epsilon=0))
        assert math.isclose(float(found.residual.abs().max()), 0, abs_tol=1e-12)
