"""What every encoder with every head must do. A new entry of a registry fails here until it has its case."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHAPE
from safetensors.torch import load_file, save_file
from test_loop import Killed
from torch import Tensor

from deeplight_core import models
from deeplight_core.analysis import scores
from deeplight_core.data.store import Store, open_store
from deeplight_core.models import ENCODERS, HEADS, Batch, Model
from deeplight_core.models.reconstruction import Reconstruction
from deeplight_core.routes import ROUTES, TrainingSettings
from deeplight_core.training.checkpoint import data_facts, load_model, save_mask, save_model, transfer
from deeplight_core.training.devices import session
from deeplight_core.training.examples import (
    Examples,
    clips,
    of_anything,
    of_numbers,
    of_states,
    unit_statistics,
    windows,
)
from deeplight_core.training.exported import export
from deeplight_core.training.loader import Volumes
from deeplight_core.training.loop import Fitted, fit

STATES = [("EMOTION", "fear"), ("EMOTION", "neutral")]


@dataclass(frozen=True)
class Case:
    """How an entry is built for the battery.

    settings : as it is trained
    exact : settings that take its noise away
    targets : of a head
    kinds : the examples that it takes
    any_grid : of a head, whether it takes features of any grid
    mirror : of an encoder, whether it has one; heads that reconstruct need one
    thrifty : whether one kind of examples must do for each head of an encoder, or each encoder of a head
    heads : of an encoder, the heads that it is tried with, if one like it is tried with all
    """

    settings: dict[str, Any]
    exact: dict[str, Any]
    targets: tuple[Any, ...] = ()
    kinds: tuple[str, ...] = ("volume", "clip", "window")
    any_grid: bool = True
    mirror: bool = True
    thrifty: bool = False
    heads: tuple[str, ...] = ()


LIKE_R3D_18: dict[str, Any] = {"kinds": ("volume", "clip"), "mirror": False, "thrifty": True, "heads": ("classes",)}
ENCODER_CASES = {
    "deeplight": Case({"initialisation": "he"}, {"conv_dropout": (0, 0, 0), "lstm_dropout": 0}),
    "deeplight3d": Case({"widths": (4,) * 4 + (8,) * 8}, {"dropout": 0.0}, mirror=False),
    "cae": Case({"widths": (6, 6), "normalisation": "batch"}, {}),
    "srcae": Case({"widths": (4,), "hidden": 3}, {"dropout": 0.0}),
    "clip": Case({"widths": (2, 3, 4, 4, 4, 6), "features": 8}, {}, kinds=("clip", "window")),
    "resnet18": Case(
        {
            "widths": (4, 4, 6, 6), "window": (-4, 4), "planes": ["axial", "sagittal"], "slices": 2,
            "together": "attention",
        },
        {}, mirror=False, thrifty=True,
    ),
    "efficientnet_lite0": Case(  # size: of a map of one place, a depthwise kernel has one weight, whose size is free
        {"widths": (4, 4, 4, 4, 4, 4, 4, 4, 8), "window": (-4, 4), "slices": 2, "together": "lstm", "size": 40},
        {}, kinds=("volume", "clip"), mirror=False, thrifty=True,  # too chaotic for contrast's norms, as r3d_18 is
    ),
    "r3d_18": Case(
        {"widths": (4, 4, 6, 6), "window": (-4, 4)}, {}, kinds=("volume", "clip"), mirror=False, thrifty=True
    ),
    "medicalnet": Case({"widths": (4, 4, 6, 6), "window": (-4, 4)}, {}, **LIKE_R3D_18),
    "sfcn": Case({"widths": (4, 4, 4, 4, 6, 6), "window": (-4, 4)}, {}, **LIKE_R3D_18),
}  # fmt: skip
AUXILIARY = ({"column": "sex", "levels": ["F", "M"]}, {"column": "age", "levels": None})
PHENOTYPES = (
    {"column": "sex", "kind": "classes", "levels": ["F", "M"]},
    {"column": "age", "kind": "number", "levels": None},
    {"column": "income", "kind": "ordered", "levels": ["low", "middle", "high"]},
    {"column": "iq", "kind": "bins", "levels": [80, 120, 8]},
)
RECONSTRUCTING = {"output": "linear", "noise": 0.1, "alpha": 0.4}
HEAD_CASES = {
    "classes": Case({"dropout": 0.2}, {"dropout": 0.0}, tuple(list(pair) for pair in STATES), any_grid=False),
    "numbers": Case({"dropout": 0.2, "pooling": "mean"}, {"dropout": 0.0}, ("age", "iq")),
    "phenotypes": Case({"dropout": 0.2}, {"dropout": 0.0}, PHENOTYPES, any_grid=False, thrifty=True),
    "reconstruction": Case(RECONSTRUCTING, {"noise": 0.0}, AUXILIARY, ("volume",), any_grid=False),
    "variational": Case({**RECONSTRUCTING, "warm_up_steps": 5}, {"noise": 0.0}, AUXILIARY, ("volume",), any_grid=False),
    "contrast": Case({"units": 5, "negatives": "batch"}, {}, kinds=("window",)),
}
SHAPES = {"volume": (), "clip": (2,), "window": (3, 1)}


def _kinds(encoder: Case, head: Case) -> list[str]:
    """The examples that a head on an encoder takes."""
    found = [kind for kind in head.kinds if kind in encoder.kinds]
    return found[:1] if encoder.thrifty or head.thrifty else found


KINDS = {
    (encoder, head): _kinds(ENCODER_CASES[encoder], HEAD_CASES[head])
    for encoder, head in itertools.product(ENCODER_CASES, HEAD_CASES)
    if ENCODER_CASES[encoder].mirror or not issubclass(HEADS[head], Reconstruction)
    if head in (ENCODER_CASES[encoder].heads or HEAD_CASES)
}
# over few places
NORMALISED = ("clip", "deeplight3d", "resnet18", "efficientnet_lite0", "r3d_18", "medicalnet", "sfcn")
CASES = [case for case, kinds in KINDS.items() if kinds]
SETTINGS = TrainingSettings(epochs=2, steps_per_epoch=4, batch_size=10, learning_rate=1e-3, threads=1)
# Many blocks of few channels are chaotic: at 1e-3, 1e-7 more of the input changes a loss by a sixth in eight steps.
RATES = {"efficientnet_lite0": 1e-5, "deeplight3d": 1e-5, "sfcn": 1e-5}
every_case = pytest.mark.parametrize(("encoder", "head"), CASES)
every_kind = pytest.mark.parametrize(
    ("encoder", "head", "kind"), [(*case, kind) for case in CASES for kind in KINDS[case]]
)


def test_every_entry_has_its_case() -> None:
    assert {*ENCODER_CASES} == {*ENCODERS}, "give a new encoder its Case in ENCODER_CASES"
    assert {*HEAD_CASES} == {*HEADS}, "give a new head its Case in HEAD_CASES"
    kinds = [kind.name for kind in vars(models).values() if hasattr(kind, "name") and hasattr(kind, "Settings")]
    assert sorted(kinds) == sorted([*ENCODERS, *HEADS]), "two classes have one name, or one is not entered"
    assert {route.encoder for route in ROUTES.values()} <= {*ENCODERS}
    assert {route.head for route in ROUTES.values()} <= {*HEADS}


def made(
    encoder: str, head: str, kind: str, exact: bool = False, shape: tuple[int, ...] = SHAPE, seed: int = 1
) -> Model:
    """A model for examples of a kind; an exact one draws no noise."""
    settings = [case.settings | (case.exact if exact else {}) for case in (ENCODER_CASES[encoder], HEAD_CASES[head])]
    if encoder == "clip":
        settings[0]["frames"] = SHAPES[kind][-1]
    targets = HEAD_CASES[head].targets
    torch.manual_seed(seed)
    model = models.build(
        {
            "encoder": {"name": encoder, "shape": list(shape), "settings": settings[0]},
            "head": {"name": head, "targets": list(targets), "settings": settings[1]},
        }
    )
    if head == "numbers":
        model.head.standardise([40.0, 100.0], [10.0, 15.0])
    elif head == "phenotypes":
        model.head.standardise([0.5, 40.0, 1.0, 100.0], [1.0, 10.0, 1.0, 15.0])
    elif targets == AUXILIARY:
        model.head.standardise([0.0, 40.0], [1.0, 10.0])
    return model


def batch_of(head: str, kind: str, n: int = 6, shape: tuple[int, ...] = SHAPE) -> Batch:
    """Random examples of a kind that the head takes; of numbers some are missing.

    What is reconstructed, of what the code tells targets, differs mostly by its mean.
    """
    random = torch.Generator().manual_seed(0)
    volumes = torch.randn(n, *SHAPES[kind], *shape[::-1], generator=random)
    if HEAD_CASES[head].targets == AUXILIARY:
        level = torch.randn(n, generator=random)
        volumes = 0.02 * volumes + level[:, None, None, None]
        targets = torch.stack([(level > 0).float(), 40 + 10 * level], dim=1)
        targets[0, 1] = targets[3, 0] = torch.nan
    elif head == "phenotypes":
        places = torch.arange(n)
        targets = torch.stack([places % 2, 40.0 + 9 * (places % 3 - 1), places % 3, 85.0 + 6 * places % 30], dim=1)
        targets[0, 1] = targets[3, 0] = targets[2, 2] = targets[1, 3] = torch.nan
    elif head not in ("classes", "numbers"):
        targets = torch.empty(n, 0)
    elif head == "classes":
        targets = torch.arange(n) % len(STATES)
    else:
        targets = torch.randn(n, 2, generator=random) * torch.tensor([10.0, 15]) + torch.tensor([40.0, 100])
        targets[0, 1] = targets[3, 0] = torch.nan
    return {"volumes": volumes, "targets": targets, "numbers": torch.arange(n)}


def people(store: Store) -> pd.DataFrame:
    """The store's index with three numbers of each subject; one is missing."""
    units = sorted(store.index["unit"].unique())
    numbers = {"age": [str(30 + 3 * i) for i in range(len(units))], "iq": [str(90 + 7 * (i % 3)) for i in range(6)]}
    numbers |= {"sex": list("011010"), "income": ["low", "high", "middle", "n/a", "low", "high"]}
    numbers["iq"][1] = "n/a"
    return store.index.assign(
        **{c: store.index["unit"].map(dict(zip(units, v, strict=True))) for c, v in numbers.items()}
    )


def examples(store: Store, head: str, split: str, kind: str = "volume") -> Examples:
    if HEAD_CASES[head].targets == AUXILIARY:
        found = of_numbers(people(store), ["sex", "age"], ["EMOTION"], split)
    elif head == "phenotypes":
        table = people(store).replace({"sex": {"0": "F", "1": "M"}})
        levels = {
            target["column"]: target["levels"] for target in PHENOTYPES if target["kind"] in ("classes", "ordered")
        }
        found = of_numbers(table, [t["column"] for t in PHENOTYPES], ["EMOTION"], split, levels=levels)
    elif head not in ("classes", "numbers"):
        found = of_anything(store.index, ["EMOTION"], split)
    elif head == "classes":
        found = of_states(store.index, STATES, split)
    else:
        found = of_numbers(people(store), ["age", "iq"], ["EMOTION"], split)
    return {"volume": lambda: found, "clip": lambda: clips(found, 2), "window": lambda: windows(found, 1)}[kind]()


# ---- shapes


@every_kind
def test_outcome_has_its_shapes_on_unequal_axes(encoder: str, head: str, kind: str) -> None:
    model, batch = made(encoder, head, kind), batch_of(head, kind, 5)
    outcome = model.loss(batch)
    n_scored = len(model.head.scored)
    assert model.encoder(batch["volumes"]).shape == (5, *model.encoder.output_shape)
    assert outcome.loss.shape == ()
    assert outcome.each.shape == (5,)
    assert outcome.score.shape == (5, n_scored)
    assert outcome.answer.shape == (5, *model.head.answer_shape)
    assert not any(tensor.requires_grad for tensor in outcome[1:])
    assert outcome.loss.item() == pytest.approx(outcome.each.mean().item(), rel=1e-6)
    missing = (
        batch["targets"].isnan() if head in ("numbers", "phenotypes") else torch.zeros(5, n_scored, dtype=torch.bool)
    )
    assert torch.equal(outcome.score.isnan(), missing)


@pytest.mark.parametrize("head", [name for name, case in HEAD_CASES.items() if case.any_grid])
def test_an_encoder_without_a_grid_takes_any(head: str) -> None:
    for encoder in (name for name, kind in ENCODERS.items() if not kind.needs_grid):
        kind = (KINDS.get((encoder, head)) or HEAD_CASES[head].kinds)[0]
        model = made(encoder, head, kind)
        model.loss(batch_of(head, kind, shape=(6, 9, 7))).loss.backward()


@pytest.mark.parametrize("encoder", ENCODER_CASES)
def test_blocks_are_all_of_an_encoder(encoder: str) -> None:
    model = made(encoder, "classes", "clip").encoder
    found = [[name for name in model.state_dict() if name.startswith(f"{block}.")] for block in model.blocks]
    assert all(found)
    assert sorted(itertools.chain(*found)) == sorted(model.state_dict())


# ---- learning


@pytest.mark.parametrize("name", list(ROUTES))
def test_what_every_route_has_pretrained_travels(name: str, store: Store, tmp_path: Path) -> None:
    """Exported, loaded, and taken over by a decoder of other states: the encoder answers the same everywhere."""
    route = ROUTES[name]
    kind = KINDS[route.encoder, route.head][0]
    model = made(route.encoder, route.head, kind)
    if hasattr(model.head, "set_mask"):
        model.head.set_mask(store.mask[store.box].T)
    told = {"route": name, "units": ["s1"], "reported": ["s5"], "tasks": ["EMOTION"], "seen_volumes": 1}
    save_mask(store.mask, store.affine, tmp_path)
    save_model(model, tmp_path, {"data": data_facts(store), "training": told})
    pd.DataFrame(columns=list(scores.COLUMNS)).to_csv(tmp_path / "scores.csv", index=False)
    folder = export(tmp_path, tmp_path / "exported")
    volumes = batch_of(route.head, kind)["volumes"].flatten(0, 1 if kind == "window" else 0)
    decoder = made(route.encoder, "classes", kind, seed=2)
    left_out, differing = transfer(decoder, folder, data_facts(store))
    assert all(weight.startswith(("head.", "decoder.")) for weight in left_out)
    assert differing == []
    loaded = load_model(folder)[0]
    with torch.inference_mode():
        expected, *found = (of.encoder.eval()(volumes) for of in (model, loaded, decoder))
        assert decoder.eval()(volumes).isfinite().all()
    assert all(torch.equal(expected, own) for own in found)
    assert route.title in (folder / "README.md").read_text(encoding="utf-8")


@every_case
def test_one_batch_can_be_overfitted(encoder: str, head: str) -> None:
    kind = KINDS[encoder, head][0]
    model, batch = made(encoder, head, kind, exact=True).train(), batch_of(head, kind)
    adam = torch.optim.Adam(model.parameters(), lr=0.005)
    first = model.loss(batch).loss.item()
    for _ in range(300):
        loss = model.loss(batch).loss
        if loss.item() < 0.1 * first:
            return
        adam.zero_grad()
        loss.backward()
        adam.step()
    raise AssertionError(f"from {first} only to {loss.item()}")


@every_case
def test_float32_and_bfloat16_agree(encoder: str, head: str) -> None:
    """Rounded to 8 binary places, a loss differs by some percent of what the batch's losses differ by."""
    kind = KINDS[encoder, head][0]
    model, batch = made(encoder, head, kind, exact=True).train(), batch_of(head, kind, 12)
    torch.manual_seed(0)
    single = model.loss(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(batch)
    assert half.loss.dtype == torch.float32
    if encoder not in NORMALISED and head != "contrast":
        torch.testing.assert_close(half.each.float(), single.each, rtol=0.1, atol=0.02)
        torch.testing.assert_close(half.answer.float(), single.answer, rtol=0.1, atol=0.05, equal_nan=True)
        return
    # Small differences are made large: by normalisations over twelve places, by a temperature.
    known = single.answer.isfinite()
    for rounded, exact in ((half.each.float(), single.each), (half.answer.float()[known], single.answer[known])):
        assert (rounded - exact).norm() <= 0.15 * exact.norm() + 0.05


# ---- saved and resumed


@every_case
def test_saved_is_loaded(encoder: str, head: str, store: Store, tmp_path: Path) -> None:
    kind = KINDS[encoder, head][0]
    model, batch = made(encoder, head, kind), batch_of(head, kind)
    model.loss(batch)  # a step of its buffers, if it has some
    facts = data_facts(store)
    save_model(model, tmp_path, {"data": facts})
    torch.manual_seed(99)
    loaded, record = load_model(tmp_path)
    assert record["architecture"] == json.loads(json.dumps(model.architecture))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    for one, same in zip(loaded.eval().loss(batch), model.eval().loss(batch), strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=0, equal_nan=True)
    other = made(encoder, "classes", kind, seed=2)
    before = other.head.weight.clone()
    left_out, differing = transfer(other, tmp_path, facts)
    assert {name.partition(".")[0] for name in left_out} == {"head"}
    assert differing == []
    for name, tensor in other.encoder.state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name]), name
    assert torch.equal(other.head.weight, before)


def train(
    store: Store, folder: Path, encoder: str, head: str, steps: float = math.inf, devices: int = 1, kind: str = "volume"
) -> tuple[Fitted, dict[str, Tensor]]:
    """What a training gives, and the model's state; it is interrupted after so many steps."""
    train, held_out = (examples(store, head, split, kind) for split in ("train", "validation"))

    def volumes(device: torch.device) -> Volumes:
        data = Killed(store, train, device)
        data.left = steps
        return data

    model = made(encoder, head, kind)
    if hasattr(model.head, "standardise"):
        model.head.standardise(*unit_statistics(train))
    settings = SETTINGS.model_copy(update={"learning_rate": RATES.get(encoder, SETTINGS.learning_rate)})
    with session(settings, devices) as fabric:
        fitted = fit(
            fabric,
            model,
            volumes,
            lambda device: Volumes(store, held_out, device),
            settings,
            1,
            folder,
            "training",
            0.0,
        )
    return fitted, model.state_dict()


@every_kind
def test_killed_and_resumed_is_unbroken(encoder: str, head: str, kind: str, store: Store, tmp_path: Path) -> None:
    whole, expected = train(store, tmp_path / "whole", encoder, head, kind=kind)
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "broken", encoder, head, steps=4, kind=kind)
    resumed, state = train(store, tmp_path / "broken", encoder, head, kind=kind)
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())
    for one, other in zip(whole.answers, resumed.answers, strict=True):
        np.testing.assert_array_equal(one, other)
    pd.testing.assert_frame_equal(whole.metrics, resumed.metrics, check_exact=True)
    n, each = len(examples(store, head, "train", kind)), {"volume": 1, "clip": 2, "window": 3}[kind]
    sizes = [min(10, n - start) for start in range(0, n, 10)]
    assert resumed.seen_volumes == whole.seen_volumes == each * sum((sizes * 8)[:8])


def test_processes_train_as_one(store: Store, tmp_path: Path) -> None:
    """Noise and batch statistics included; and a last batch that is smaller."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parent / "training", here.parents[1])))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, __file__, str(store.path), str(tmp_path / "many")], env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for encoder, head in CASES:
        name = f"{encoder}-{head}"
        single, state = train(store, tmp_path / "one" / name, encoder, head, kind=KINDS[encoder, head][0])
        many = load_file(tmp_path / "many" / name / "model.safetensors")
        table = pd.read_csv(tmp_path / "many" / name / "metrics.csv")
        # Sums in another order, through Adam. The last bias of `clip` is taken away by the contrast head's norm:
        # it follows the rounding, and so do the running averages, by which held-out windows are normalised.
        unsteady = (encoder, head) == ("clip", "contrast")
        for split in ("train", "validation"):
            losses, expected = (of.loc[of["split"] == split, "loss"] for of in (table, single.metrics))
            tolerance = 0.03 if unsteady and split == "validation" else 1e-3
            np.testing.assert_allclose(losses, expected, rtol=tolerance, err_msg=name)
        for key, tensor in state.items():
            if head == "contrast" and encoder in ("clip", "deeplight3d") and key == "head.hidden_norm.running_mean":
                continue  # the last shifts of both encoders, which are taken away
            if "running" in key or "steps" in key:
                where = f"{name}, {key}: ".__add__
                torch.testing.assert_close(
                    many[key], tensor, rtol=5e-3, atol=1e-5, msg=where
                )  # Adam magnifies rounding


if __name__ == "__main__":  # one of the processes of `test_processes_train_as_one`
    for encoder, head in CASES:
        folder = Path(sys.argv[2]) / f"{encoder}-{head}"
        kind = KINDS[encoder, head][0]
        _, weights = train(open_store(sys.argv[1]), folder, encoder, head, devices=2, kind=kind)
        if os.environ["RANK"] == "0":
            save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / "model.safetensors")
