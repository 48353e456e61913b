"""Relevance: how much each voxel contributed to a model's answer.

`lrp` is layer-wise relevance propagation (Bach et al. 2015). It hands an answer's value back through the layers, each
of which shares what it got among its inputs in proportion to what they contributed, by a rule: ε, αβ or γ (Montavon et
al. 2019) in convolutions, ε in linear layers, batch normalisations and the LSTM, whose gates are constants and get
nothing (Arras et al. 2017). `gradient` is gradient × input. `integrated` is integrated gradients (Sundararajan et al.
2017) from the zero volume, which for z-scores is every voxel's mean.

No model is known here. While a model runs, its calls of PyTorch's functions are intercepted and get other derivatives
g, such that value × g is the value's relevance. Of most functions (sums, means, shortcuts, pooling, whatever moves
values) the own derivative has this property. A function without a rule whose result depends on the volumes is refused
by name.

Letters: B examples, V voxels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deeplight_core.routes import Section

__all__ = ["METHODS", "Method", "Relevance", "UndefinedError", "explain"]


class UndefinedError(ValueError):
    """LRP has no rule for a function of the model."""


class Method(Section):
    """A way to explain answers."""

    kind: Literal["lrp", "gradient", "integrated"] = "lrp"
    """Layer-wise relevance propagation, gradient × input, or integrated gradients."""
    rule: Literal["epsilon", "alpha2beta1", "gamma"] = "epsilon"
    """LRP: how convolutions share relevance."""
    first: Literal["same", "flat", "wsquare"] = "same"
    """LRP: how the first convolution does: like the others; to all its inputs alike; or by squared weights."""
    epsilon: float = Field(1e-3, ge=0)
    """LRP: what stabilises the ε rule, in units of each layer's values; it absorbs relevance."""
    gamma: float = Field(0.25, ge=0)
    """LRP: how much more the γ rule counts contributions of the result's own sign."""
    steps: int = Field(50, ge=1)
    """Integrated gradients: points on the way from the zero volume (Gauss-Legendre)."""


METHODS = {
    "lrp-epsilon": Method(),
    "lrp-alpha2beta1": Method(rule="alpha2beta1"),
    "lrp-gamma": Method(rule="gamma"),
    "gradient": Method(kind="gradient"),
    "integrated-gradients": Method(kind="integrated"),
}


class Relevance(NamedTuple):
    """Relevance of B examples.

    voxels : the volumes' shape, (B, …, Z, Y, X)
    logit : (B,) the explained value
    biases : (B,) LRP: what biases got; integrated gradients: the zero volume's logit, which no voxel explains
    stabiliser : (B,) LRP: what ε absorbed
    """

    voxels: Tensor
    logit: Tensor
    biases: Tensor
    stabiliser: Tensor

    @property
    def residual(self) -> Tensor:
        """(B,) the logit minus everything that was given away; LRP: rounding alone."""
        return self.logit - self.voxels.flatten(1).sum(dim=1) - self.biases - self.stabiliser


def explain(model: nn.Module, volumes: Tensor, targets: Tensor, method: Method) -> Relevance:
    """The relevance of every voxel to one of the model's outputs for each example.

    Computed in the precision of the model's weights and of `volumes`; `model.double()` makes conservation exact.

    Parameters
    ----------
    model : volumes (B, …, Z, Y, X) → (B, S)
    targets : (B,) which output of each example is explained

    Raises
    ------
    UndefinedError
        If the model uses a function that LRP has no rule for.
    """
    chosen = torch.arange(len(volumes), device=volumes.device), targets.to(volumes.device)
    with _only_explained(model):
        if method.kind == "lrp":
            return _propagated(model, volumes, chosen, method)
        if method.kind == "gradient":
            gradient, logit = _gradient(model, volumes, chosen)
            return Relevance(volumes * gradient, logit, torch.zeros_like(logit), torch.zeros_like(logit))
        points, weights = np.polynomial.legendre.leggauss(method.steps)
        total = torch.zeros_like(volumes)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            total += weight * _gradient(model, point * volumes, chosen)[0]
        with torch.no_grad(), _KeepsPrecision():
            logit, baseline = (model(x)[chosen] for x in (volumes, torch.zeros_like(volumes)))
        return Relevance(volumes * total, logit, baseline, torch.zeros_like(logit))


@contextmanager
def _only_explained(model: nn.Module) -> Iterator[None]:
    """Without noise, and without derivatives of the weights; cuDNN's LSTM has none outside training."""
    training = [part for part in model.modules() if part.training]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval().requires_grad_(False)
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not _has_lstm(model)):
            yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
        for part in training:
            part.training = True


def _has_lstm(model: nn.Module) -> bool:
    return any(isinstance(part, nn.RNNBase) for part in model.modules())


def _gradient(model: nn.Module, volumes: Tensor, chosen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    volumes = volumes.detach().requires_grad_(True)
    with torch.enable_grad(), _KeepsPrecision():
        logit = model(volumes)[chosen]
    return torch.autograd.grad(logit.sum(), volumes)[0], logit.detach()


def _propagated(model: nn.Module, volumes: Tensor, chosen: tuple[Tensor, Tensor], method: Method) -> Relevance:
    volumes = volumes.detach().requires_grad_(True)
    ledger = _Ledger(volumes)
    with torch.enable_grad(), _Rules(method, ledger):
        logit = model(volumes)[chosen]
    found = torch.autograd.grad(logit.sum(), volumes, retain_graph=True)[0] * volumes
    if ledger.first is not None:  # what the first convolution gave its inputs, and their way from the volumes
        found = found + torch.autograd.grad(ledger.first, volumes, ledger.of_first)[0]
    return Relevance(found.detach(), logit.detach(), ledger.biases, ledger.stabiliser)


class _KeepsPrecision(TorchFunctionMode):
    """Double precision stays, where a model asks for float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


# ---- what the layers keep


class _Ledger:
    """Relevance that does not reach the voxels, for each of B examples."""

    def __init__(self, volumes: Tensor) -> None:
        self.volumes = volumes
        self.biases, self.stabiliser = (volumes.new_zeros(len(volumes)) for _ in range(2))
        self.first: Tensor | None = None
        self.of_first: Tensor | None = None

    def add(self, name: Literal["biases", "stabiliser"], relevance: Tensor) -> None:
        """Relevance (n·B, …): an example's slices, frames and so on follow one another."""
        total: Tensor = getattr(self, name)
        total += relevance.reshape(len(total), -1).sum(dim=1)


@dataclass(frozen=True)
class _Linear:
    """A linear function of x and weights: its value, and its derivative with respect to x."""

    value: Callable[[Tensor, Tensor], Tensor]
    back: Callable[[Tensor, Tensor, Tensor], Tensor]  # (derivatives of the result, x, weight)
    bias: Tensor | None  # as wide as the result's channels, shaped to be added


class _Shared(torch.autograd.Function):
    """A linear layer that shares its relevance by the ε rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: _Linear, epsilon: float, ledger: _Ledger) -> Tensor:
        z = layer.value(x, weight)
        if layer.bias is not None:
            z = z + layer.bias
        ctx.save_for_backward(x, weight, z)
        ctx.own = layer, epsilon, ledger
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, z = ctx.saved_tensors
        layer, epsilon, ledger = ctx.own
        g = _stabilised(g, z, epsilon, ledger)
        if layer.bias is not None:
            ledger.add("biases", g * layer.bias)
        return layer.back(g, x, weight), None, None, None, None


class _SharedBySign(torch.autograd.Function):
    """A linear layer that shares its relevance by the αβ or the γ rule, which tell contributions by their signs.

    A result whose contributions have one sign only gives these all of its relevance, so that nothing is lost or made.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: _Linear, method: Method, ledger: _Ledger) -> Tensor:
        w_plus, w_minus = weight.clamp(min=0), weight.clamp(max=0)
        signed = bool((x < 0).any())
        x_plus = x.clamp(min=0) if signed else x
        plus, minus = layer.value(x_plus, w_plus), layer.value(x_plus, w_minus)
        if signed:
            x_minus = x.clamp(max=0)
            plus, minus = plus + layer.value(x_minus, w_minus), minus + layer.value(x_minus, w_plus)
        if layer.bias is not None:
            plus, minus = plus + layer.bias.clamp(min=0), minus + layer.bias.clamp(max=0)
        ctx.save_for_backward(x, w_plus, w_minus, plus, minus)
        ctx.own = layer, method, ledger, signed
        return plus + minus

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w_plus, w_minus, plus, minus = ctx.saved_tensors
        layer, method, ledger, signed = ctx.own
        back, below = torch.zeros_like(x), torch.zeros_like(x) if signed else None
        for share, of_plus, of_minus in _shares(g, plus, minus, method):
            if layer.bias is not None:
                ledger.add("biases", share * (of_plus * layer.bias.clamp(min=0) + of_minus * layer.bias.clamp(max=0)))
            back += layer.back(share, x, of_plus * w_plus + of_minus * w_minus)
            if below is not None:
                below += layer.back(share, x, of_plus * w_minus + of_minus * w_plus)
        return back if below is None else torch.where(x < 0, below, back), None, None, None, None


def _shares(g: Tensor, plus: Tensor, minus: Tensor, method: Method) -> Iterator[tuple[Tensor, float, float]]:
    """Shares of the relevance g · (plus + minus), and how often each positive and each negative contribution gets one.

    A ReLU lets positive results through only, so that γ's shares of negative ones seldom exist.
    """
    z = plus + minus
    if method.rule == "gamma":
        more = 1 + method.gamma
        for same, others, of_plus, of_minus in ((plus, z <= 0, more, 1.0), (minus, z >= 0, 1.0, more)):
            own = g.masked_fill(others, 0.0)
            if own.any():
                yield (
                    own.mul_(z).div_(torch.add(z, same, alpha=method.gamma).masked_fill_(others, 1.0)),
                    of_plus,
                    of_minus,
                )
        return
    none_plus, none_minus, relevance = plus == 0, minus == 0, g * z
    yield (relevance / plus).mul_(torch.where(none_minus, 1.0, 2.0)).masked_fill_(none_plus, 0.0), 1.0, 0.0
    yield relevance.div_(minus).mul_(torch.where(none_plus, 1.0, -1.0)).masked_fill_(none_minus, 0.0), 0.0, 1.0


class _First(torch.autograd.Function):
    """The first layer, whose inputs get relevance whatever their values: alike, or by their squared weights.

    That is no derivative, since values of 0 get some, too; the ledger keeps it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: _Linear, method: Method, ledger: _Ledger) -> Tensor:
        z = layer.value(x, weight)
        if layer.bias is not None:
            z = z + layer.bias
        ctx.save_for_backward(x, weight, z)
        ctx.own = layer, method, ledger
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, z = ctx.saved_tensors
        layer, method, ledger = ctx.own
        by = torch.ones_like(weight) if method.first == "flat" else weight.square()
        voxels = _voxels_of(ledger)
        total = layer.value(voxels, by)
        share = torch.where(total == 0, 0.0, g * z / torch.where(total == 0, 1.0, total))
        ledger.of_first = layer.back(share, x, by) * voxels
        return torch.zeros_like(x), None, None, None, None


def _voxels_of(ledger: _Ledger) -> Tensor:
    """Which of the first layer's inputs are voxels, 1, and which are padding, 0.

    The inputs are a linear function of the volumes; this is its value for volumes of 1.
    """
    assert ledger.first is not None
    with torch.enable_grad():
        given = torch.zeros_like(ledger.first, requires_grad=True)
        moved = torch.autograd.grad(ledger.first, ledger.volumes, given, create_graph=True, retain_graph=True)[0]
        return torch.autograd.grad(moved, given, torch.ones_like(moved))[0]


class _Stabilised(torch.autograd.Function):
    """A sum whose parts share its relevance by the ε rule."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, epsilon: float, ledger: _Ledger) -> Tensor:
        ctx.save_for_backward(z)
        ctx.own = epsilon, ledger
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _stabilised(g, ctx.saved_tensors[0], *ctx.own), None, None


def _stabilised(g: Tensor, z: Tensor, epsilon: float, ledger: _Ledger) -> Tensor:
    """g · z / (z + ε sign(z)); the rest of the relevance g · z is the stabiliser's."""
    if epsilon == 0:
        return g
    kept = torch.copysign(z.new_full((), epsilon), z).add_(z).reciprocal_().mul_(z).mul_(g)
    ledger.add("stabiliser", (g - kept).mul_(z))
    return kept


# ---- the functions of PyTorch that have a rule

# Their own derivatives keep relevance: they move values, add them up, choose among them, or pass them or not.
_LINEAR = {
    "view", "view_as", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "moveaxis", "swapaxes",
    "flip", "roll", "contiguous", "clone", "to", "float", "double", "squeeze", "unsqueeze", "expand", "expand_as",
    "cat", "concat", "stack", "split", "chunk", "unbind", "select", "narrow", "index_select", "__getitem__", "__get__",
    "neg", "mean", "sum", "amax", "pad", "relu", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "_max_pool1d",
    "_max_pool2d", "_max_pool3d", "boolean_dispatch", "fn",
}  # fmt: skip
# Zero stays zero, and all relevance passes.
_ACTIVATIONS = {"elu", "leaky_relu", "gelu", "silu", "tanh", "relu6", "hardtanh", "softsign"}
_PRODUCTS = {"mul", "multiply", "__mul__", "__rmul__", "matmul", "__matmul__"}  # with a constant
_QUOTIENTS = {"div", "true_divide", "__truediv__"}  # by a constant
_SUMS = {"add", "sub", "__add__", "__radd__", "__sub__", "add_"}  # of two values that depend on the volumes
_DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"}  # that drops nothing


class _Rules(_KeepsPrecision):
    """Calls of PyTorch's functions, with the derivatives of LRP."""

    def __init__(self, method: Method, ledger: _Ledger) -> None:
        super().__init__()
        self.method, self.ledger = method, ledger
        self.layers: dict[str, Callable[..., Any]] = {
            "conv1d": self._convolution, "conv2d": self._convolution, "conv3d": self._convolution,
            "linear": self._matrix, "batch_norm": self._batch_norm, "lstm": self._lstm,
        }  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        dependent = [x for x in _tensors([args, kwargs]) if x.requires_grad]
        if not dependent:
            return func(*args, **kwargs)
        if name in self.layers:
            return self.layers[name](*args, **kwargs)
        if name in _ACTIVATIONS:
            return self._activation(func, *args, **kwargs)
        found = super().__torch_function__(func, types, args, kwargs)
        changed = [x for x in _tensors([found]) if x.requires_grad]
        known = (
            name in _LINEAR
            or (name in _PRODUCTS and len(dependent) == 1)
            or (name in _QUOTIENTS and len(dependent) == 1 and dependent[0] is args[0])
            or (name in _SUMS and all(isinstance(x, Tensor) and x.requires_grad for x in args[:2]))
            or (name in _DROPOUT and found is not None and torch.equal(found, args[0]))
        )
        if changed and not known:
            raise self._undefined(name)
        return found

    def _undefined(self, what: str) -> UndefinedError:
        return UndefinedError(
            f"LRP is not defined for the function {what} that this model uses; take gradient or integrated-gradients"
        )

    def _activation(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("inplace") or (args and args[-1] is True):
            raise self._undefined(f"{func.__name__} in place")
        value = func(x.detach(), *args, **kwargs)
        return x * torch.where(x == 0, 0.0, value / torch.where(x == 0, 1.0, x.detach()))

    def _affine(self, x: Tensor, weight: Tensor, layer: _Linear) -> Tensor:
        result: Tensor = _Shared.apply(x, weight, layer, self.method.epsilon, self.ledger)
        return result

    def _convolution(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        if isinstance(padding, str):
            raise self._undefined(f"convolution with padding={padding!r} (numbers are defined)")
        n = weight.dim() - 2
        stride, padding, dilation = ([k] * n if isinstance(k, int) else list(k) for k in (stride, padding, dilation))

        def value(x: Tensor, weight: Tensor) -> Tensor:
            return torch.convolution(x, weight, None, stride, padding, dilation, False, [0] * n, groups)

        def back(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
            found: Tensor = torch.ops.aten.convolution_backward(
                g, x, weight, None, stride, padding, dilation, False, [0] * n, groups, [True, False, False]
            )[0]
            return found

        layer = _Linear(value, back, None if bias is None else bias.view(-1, *[1] * n))
        is_first, method = self.ledger.first is None, self.method
        if is_first and method.first != "same":
            self.ledger.first = x
            result: Tensor = _First.apply(x, weight, layer, method, self.ledger)
        elif method.rule != "epsilon":
            result = _SharedBySign.apply(x, weight, layer, method, self.ledger)
        else:
            result = self._affine(x, weight, layer)
        return result

    def _matrix(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._affine(x, weight, _Linear(F.linear, lambda g, x, weight: g @ weight, bias))

    def _batch_norm(
        self, x: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if training or mean is None or variance is None:
            raise self._undefined("batch_norm without running statistics")
        scale = torch.rsqrt(variance + eps) * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * scale
        shape = (-1, *[1] * (x.dim() - 2))

        def times(g: Tensor, x: Tensor, scale: Tensor) -> Tensor:
            return g * scale

        return self._affine(x, scale.view(shape), _Linear(torch.mul, times, shift.view(shape)))

    def _lstm(self, x: Tensor, initial: Any, weights: Any, has_biases: bool, n_layers: int, *others: Any) -> Any:
        _, _, bidirectional, batch_first = others
        if not has_biases or n_layers > 1 or not batch_first:
            raise self._undefined("LSTM of several layers, without biases, or with time before examples")
        outputs, last = [], []
        for direction in range(1 + bidirectional):
            steps = list(x.unbind(dim=1))
            own = weights[4 * direction : 4 * direction + 4]
            states, cell = self._one_way(steps[::-1] if direction else steps, own, *(s[direction] for s in initial))
            outputs.append(torch.stack(states[::-1] if direction else states, dim=1))
            last.append((states[-1], cell))
        h, c = (torch.stack(of) for of in zip(*last, strict=True))
        return torch.cat(outputs, dim=2), h, c

    def _one_way(self, steps: list[Tensor], weights: Any, h: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
        """States (B, H) after each step (B, F), and the last cell; PyTorch's gates are input, forget, cell, output."""
        from_x, from_h, bias_x, bias_h = weights
        gates, n = torch.cat([from_x, from_h], dim=1), h.shape[1]
        bias, states = bias_x + bias_h, []
        cells = gates[2 * n : 3 * n]
        layer = _Linear(F.linear, lambda g, x, weight: g @ weight, bias[2 * n : 3 * n])
        for step in steps:
            both = torch.cat([step, h], dim=1)
            i, f, _, o = F.linear(both.detach(), gates, bias).chunk(4, dim=1)
            new = self._activation(torch.tanh, self._affine(both, cells, layer))
            c = f.sigmoid() * c + i.sigmoid() * new
            c = _Stabilised.apply(c, self.method.epsilon, self.ledger)
            h = o.sigmoid() * self._activation(torch.tanh, c)
            states.append(h)
        return states, c


def _tensors(found: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for part in found:
            yield from _tensors(part)
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))
