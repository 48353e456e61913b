"""The cost of the paper's run in volumes, operations, bytes, hours and dollars, on one device and on many.

Volumes, operations and bytes are counted from settings and the model; hours follow from rates measured by the scripts
in `benchmarks`. Unless a docstring says otherwise, `passes` is `paper.full_run`'s table, `subject` is `per_subject`'s,
and `results` are the files of one script (`measured`).
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from deeplight_core.config import Profile, project_root
from deeplight_core.data import simulate
from deeplight_core.routes import ROUTES, VARIANTS
from deeplight_core.sweeps import CONTROLS, Cell, changed, planned, pretraining_of
from deeplight_core.tasks import TASKS
from deeplight_core.training.examples import draw_units

if TYPE_CHECKING:
    from deeplight_core.models.deeplight import Layer

__all__ = [
    "GRID",
    "Assumed",
    "Controls",
    "chain_hours",
    "controls",
    "decoder_layers",
    "device_hours",
    "evaluation_batch",
    "exchanges",
    "feeding",
    "gpu_rate",
    "growth",
    "hashing_rate",
    "index_row_bytes",
    "limits",
    "loading",
    "many_gpus",
    "measured",
    "n_brain_voxels",
    "per_subject",
    "preparing",
    "pretraining_steps",
    "rates",
    "reading",
    "step_times",
    "storage",
    "sweep_seconds",
    "sweep_subjects",
    "total_flops",
    "volume_bytes",
    "volume_flops",
    "ways",
]

GRID = (91, 109, 91)
"""Shape of HCP's grid at 2 mm."""

_N_RUNS = 2  # of each task in HCP: LR and RL
_STORED_BYTES = np.dtype("float16").itemsize  # of a voxel in the store
_FLOAT_BYTES = np.dtype("float32").itemsize


def measured(script: str) -> list[dict[str, Any]]:
    """The results of `benchmarks/<script>.py` in `benchmarks/results`, one per machine."""
    files = sorted((project_root() / "benchmarks" / "results").glob(f"{script}-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


# ---- counted


def decoder_layers(recipe: Profile) -> "list[Layer]":
    """The layers of the pre-trained decoder, on HCP's grid."""
    from deeplight_core.models.deeplight import DeepLight

    return DeepLight(GRID, len(recipe.data.states("source")), recipe.routes.supervised.encoder).layers()


def n_brain_voxels() -> int:
    """Voxels of HCP's grid inside the MNI152 brain mask."""
    from nilearn.datasets import load_mni152_brain_mask
    from nilearn.image import resample_img

    shape, affine = simulate.grid(resolution_mm=2)
    where = {"target_affine": affine, "target_shape": shape, "interpolation": "nearest"}
    brain = resample_img(load_mni152_brain_mask(resolution=2), **where, copy_header=True, force_resample=True)
    return int(np.count_nonzero(brain.get_fdata()))


def evaluation_batch() -> int:
    """Number of volumes on HCP's grid that a GPU decodes at a time."""
    from deeplight_core.training.inference import batch_size

    return batch_size(GRID, "cuda")


def volume_bytes() -> int:
    """Bytes of a volume in the store: the brain's voxels in 16 bits."""
    return _STORED_BYTES * n_brain_voxels()


def per_subject(recipe: Profile, kept: pd.Series) -> pd.DataFrame:
    """Number of volumes from one HCP subject, per task (the index).

    Parameters
    ----------
    kept : volumes per task that have a label (`paper.label_rule`)

    Returns
    -------
    `used for` ("pre-training" or "fine-tuning"), `states`, `acquired` in both runs, `kept`
    """
    rows = {
        task: (used_for, len(recipe.data.events(task)), _N_RUNS * TASKS[task].n_frames, kept[task])
        for used_for, tasks in (
            ("pre-training", recipe.data.tasks("source")),
            ("fine-tuning", recipe.data.tasks("target")),
        )
        for task in tasks
    }
    columns = ["used for", "states", "acquired", "kept"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("task")


def pretraining_steps(passes: pd.DataFrame, batch: int) -> int:
    """Steps of pre-training in batches of `batch` volumes; the last one of an epoch may be smaller."""
    first: dict[Any, Any] = passes.loc["pre-training"].to_dict()
    return int(first["epochs of each"] * math.ceil(first["volumes per epoch"] / batch))


def sweep_subjects(recipe: Profile, n_train: int) -> list[int]:
    """Number of training subjects, out of `n_train`, of each DeepLight training in the sweep."""
    return [_n_drawn(cell, n_train) for cell in planned(recipe, "sweep") if _deep(cell)]


def _deep(cell: Cell) -> bool:
    return VARIANTS[cell.variant].learner == "deep"


def _n_drawn(cell: Cell, n_train: int) -> int:
    return len(draw_units([f"subject {i}" for i in range(n_train)], cell.fraction, cell.seed))


def ways(recipe: Profile, subject: pd.DataFrame, n_train: int) -> pd.DataFrame:
    """Volumes that each way to pre-train sees in a comparison's sweep, over all seeds.

    Returns
    -------
    `variant, n_pretrainings, pretraining_volumes, n_finetunings, finetuning_volumes`, a row per deep decoder; weights
    that are published cost no pre-training, and frozen encoders share theirs with the fine-tuned one
    """
    kept, rows = subject.loc[subject["used for"] == "fine-tuning", "kept"].sum(), []
    for variant, cells in groupby(sorted(filter(_deep, planned(recipe, "sweep")), key=_variant), key=_variant):
        own, route = list(cells), getattr(recipe.routes, VARIANTS[variant].route)
        trains = VARIANTS[variant].start == "checkpoint" and route.pretraining.weights is None
        starts = {pretraining_of(recipe, cell) for cell in own} if trains else set()
        example, training = getattr(route, "example", None), route.pretraining
        frames = (
            1 if example is None else example.frames * (3 if ROUTES[VARIANTS[variant].route].example == "window" else 1)
        )
        seen = training.epochs * training.steps_per_epoch * training.batch_size * frames if trains else 0
        tuned = sum(recipe.finetuning.epochs * _n_drawn(cell, n_train) * kept for cell in own)
        rows.append((variant, len(starts), len(starts) * seen, len(own), tuned))
    columns = ["variant", "n_pretrainings", "pretraining_volumes", "n_finetunings", "finetuning_volumes"]
    return pd.DataFrame(rows, columns=columns)


def _variant(cell: Cell) -> str:
    return cell.variant


class Controls(NamedTuple):
    """What the controls add to the sweep: trainings by kind, and the volumes that the deep ones train on."""

    n_pretrainings: int
    n_finetunings: int
    n_linear: int
    n_volumes: int


def controls(recipe: Profile, subject: pd.DataFrame, n_train: int) -> Controls:
    """Count the controls' trainings and pre-trainings that are not in the sweep."""
    sweep = {*planned(recipe, "sweep")}
    cells = {cell for name in CONTROLS for cell in planned(recipe, name)} - sweep
    deep = [cell for cell in cells if _deep(cell)]
    starts = {pretraining_of(recipe, cell) for cell in deep} - {pretraining_of(recipe, cell) for cell in sweep} - {None}
    kept = subject["kept"]
    of_target = {"": kept[subject["used for"] == "fine-tuning"].sum(), **kept}
    n_volumes = sum(
        changed(recipe, cell.change).finetuning.epochs * _n_drawn(cell, n_train) * of_target[cell.target]
        for cell in deep
    )
    for change, _, target, _, _ in filter(None, starts):
        epochs = changed(recipe, change).routes.supervised.pretraining.epochs
        n_volumes += epochs * n_train * (kept.sum() - of_target[target])
    return Controls(len(starts), len(deep), len(cells) - len(deep), int(n_volumes))


def storage(recipe: Profile, subject: pd.DataFrame, n_train: int, n_voxels: int) -> dict[str, int]:
    """Bytes on disk and in memory that the full run needs.

    Parameters
    ----------
    n_voxels : voxels of a volume in the brain

    Returns
    -------
    On disk `raw` (float32 images) and `store`; in memory `pre-training` (its volumes as stored) and `linear` (all
    subjects' float32 volumes: to train on, the same scaled, and to decode); on the device, in 32 bits, `training` (all
    feature maps of a batch) and `validation` (the two largest of a decoded batch)
    """
    n_validation = recipe.data.n_validation
    n_subjects = n_train + n_validation
    kept = subject.groupby("used for")["kept"].sum()
    maps = sorted(_maps(decoder_layers(recipe)))
    amounts = {
        "raw": n_subjects * subject["acquired"].sum() * math.prod(GRID) * _FLOAT_BYTES,
        "store": n_subjects * kept.sum() * n_voxels * _STORED_BYTES,
        "pre-training": n_subjects * kept["pre-training"] * n_voxels * _STORED_BYTES,
        "linear": (2 * n_train + n_validation) * kept["fine-tuning"] * n_voxels * _FLOAT_BYTES,
        "training": recipe.routes.supervised.pretraining.batch_size * sum(maps) * _FLOAT_BYTES,
        "validation": evaluation_batch() * sum(maps[-2:]) * _FLOAT_BYTES,
    }
    return {name: int(n_bytes) for name, n_bytes in amounts.items()}


def _maps(layers: "Iterable[Layer]") -> list[int]:
    """Number of values in each convolution's feature maps of one volume."""
    return [math.prod(layer.output_shape) for layer in layers if layer.kind == "convolution"]


def volume_flops(layers: "list[Layer]") -> tuple[int, int]:
    """Operations on one volume: decoding it, and a training step (forward, gradients of maps, gradients of weights)."""
    forward = sum(layer.flops for layer in layers)
    return forward, 3 * forward


def total_flops(layers: "list[Layer]", passes: pd.DataFrame) -> int:
    """Operations of the full run, validation included."""
    decoding, training = volume_flops(layers)
    trained, validated = (int(passes[f"volumes {what} on"].sum()) for what in ("trained", "validated"))
    return trained * training + validated * decoding  # Python's integers: 64 bits nearly overflow


# ---- measured


def preparing(results: list[dict[str, Any]], n_frames: int) -> pd.DataFrame:
    """Cost of preparing (`prepare`) the first run of each result and, in proportion, all `n_frames` frames.

    Returns
    -------
    `device`, `path` ("nilearn" or "ours"), `seconds` of the run, `peak_gb`, `all_hours`
    """
    rows = [
        (result["device"], path, run[path]["seconds"], run[path]["peak_mb"] / 1e3,
         run[path]["seconds"] / run["frames"] * n_frames / 3600)
        for result in results for run in result["runs"][:1] for path in ("nilearn", "ours")
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["device", "path", "seconds", "peak_gb", "all_hours"])


def reading(result: dict[str, Any]) -> pd.DataFrame:
    """Volumes per second read from each format (`store`): `format, bytes_per_voxel`, a column per access and cache."""
    rows = [
        {"format": name, "bytes_per_voxel": of_format["bytes_per_voxel"]}
        | {
            f"{access}, {cache}": of_format[access][cache]["volumes_per_s"]
            for access in ("random", "sequential")
            for cache in ("cold", "warm")
        }
        for name, of_format in result["formats"].items()
    ]
    return pd.DataFrame(rows)


def step_times(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Every way to train, on every grid (`training`).

    Returns
    -------
    `device, kind, cores, threads, load, date`; `shape, mm, batch` of a grid; `way`; `training` and `decoding`, median
    milliseconds per volume, and `training_times` and `decoding_times`, speed relative to the plain loop (NaN without
    one); `idle`, share of our step that waits for data; `flops` of training on a volume; `float32_flops_per_s`,
    `bfloat16_flops_per_s` and `copy_bytes_per_s` of the device
    """
    columns = ["device", "kind", "cores", "threads", "load", "date", "shape", "mm", "batch", "way", "training",
               "decoding", "training_times", "decoding_times", "idle", "flops", "float32_flops_per_s",
               "bfloat16_flops_per_s", "copy_bytes_per_s"]  # fmt: skip
    table = pd.DataFrame([row for result in results for row in _steps_of(result)], columns=columns)
    for what in ("training", "decoding"):
        plain = table[what].where(table["way"] == "plain")
        table[f"{what}_times"] = plain.groupby([table["device"], table["mm"], table["batch"]]).transform("max")
        table[f"{what}_times"] /= table[what]
    return table


def _steps_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    device = {name: result[name] for name in ("device", "kind", "cores", "threads", "date", "copy_bytes_per_s")}
    device |= {"load": result["load_average"][0]}
    device |= {f"{precision}_flops_per_s": rate for precision, rate in result["matmul_flops_per_s"].items()}
    return [
        {
            **device, "shape": tuple(grid["shape"]), "mm": grid["mm"], "batch": grid["batch_size"], "way": way,
            "training": np.median(ms["training_ms_per_volume"]), "decoding": np.median(ms["inference_ms_per_volume"]),
            "idle": grid["idle"], "flops": grid["flops_per_volume"],
        }
        for grid in result["grids"] for way, ms in grid["ways"].items()
    ]  # fmt: skip


def limits(steps: pd.DataFrame) -> pd.DataFrame:
    """How near our step comes to the device's limit: its arithmetic in bfloat16, or its memory traffic.

    The traffic counts feature maps in 16 bits: written and read once in the forward pass; in the backward pass read
    once, and their gradients written and read once.

    Returns
    -------
    the rows of `steps` (of `step_times`) with way "ours", and `arithmetic_ms`, `copying_ms`, `of_limit`
    """
    from deeplight_core.models.deeplight import DeepLight

    ours = steps[steps["way"] == "ours"]
    map_bytes = np.array([5 * 2 * sum(_maps(DeepLight(shape).layers())) for shape in ours["shape"]], dtype=float)
    return ours.assign(
        arithmetic_ms=1e3 * ours["flops"] / ours["bfloat16_flops_per_s"],
        copying_ms=1e3 * map_bytes / ours["copy_bytes_per_s"],
        of_limit=lambda t: t[["arithmetic_ms", "copying_ms"]].max(axis=1) / t["training"],
    )


def loading(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Volumes that one core loads per second (`loader`).

    Returns
    -------
    `device`, `cache` (cold or warm), `way`, `volumes_per_s`, `times` (speed relative to a file per volume)
    """
    rows = [
        (result["device"], cache, way, rate[cache], rate[cache] / result["volumes_per_s"]["npy"][cache])
        for result in results
        for cache in ("cold", "warm")
        for way, rate in result["volumes_per_s"].items()
        if cache in rate
    ]
    return pd.DataFrame(rows, columns=["device", "cache", "way", "volumes_per_s", "times"])


# ---- hours of the full run


def rates(steps: pd.DataFrame, recipe: Profile) -> pd.DataFrame:
    """Volumes per second on HCP's grid, in batches of at most the recipe's, for every device and precision.

    Returns
    -------
    `device, kind, precision`; `training` and `decoding`, volumes per second; `flops_per_s` of large matrix products in
    that precision; `copy_bytes_per_s, load, date`
    """
    ways = {"ours-float32": "32-true", "ours": "bf16-mixed"}
    fits = (steps["shape"] == GRID) & (steps["batch"] <= recipe.routes.supervised.pretraining.batch_size)
    ours = steps[fits & steps["way"].isin(ways)]
    ours = ours.sort_values(["device", "batch", "way"], ascending=[True, True, False], ignore_index=True)
    named = zip(ours["device"], ours["kind"], ours["threads"], strict=True)
    single = ours["way"] == "ours-float32"
    return pd.DataFrame(
        {
            "device": [f"{device}, {n} threads" if kind == "cpu" else device for device, kind, n in named],
            "kind": ours["kind"], "precision": ours["way"].map(ways),
            "training": 1e3 / ours["training"], "decoding": 1e3 / ours["decoding"],
            "flops_per_s": ours["float32_flops_per_s"].where(single, ours["bfloat16_flops_per_s"]),
            "copy_bytes_per_s": ours["copy_bytes_per_s"], "load": ours["load"], "date": ours["date"],
        }
    )  # fmt: skip


def device_hours(rates: pd.DataFrame, passes: pd.DataFrame, layers: "list[Layer]") -> pd.DataFrame:
    """Hours of each part of the full run on each device (`rates`), and the lower bound from its arithmetic.

    Returns
    -------
    `device, precision`; `part` ("pre-training", "sweep", "validation" of both); `hours`, `bound_hours`
    """
    decoding, training = volume_flops(layers)
    trained = passes["volumes trained on"].astype(int).to_dict()
    parts = {
        "pre-training": (trained["pre-training"], "training", training),
        "sweep": (trained["sweep"], "training", training),
        "validation": (int(passes["volumes validated on"].sum()), "decoding", decoding),
    }
    rows = [
        (row["device"], row["precision"], part, n / row[what] / 3600, n * flops / row["flops_per_s"] / 3600)
        for row in rates.to_dict("records")
        for part, (n, what, flops) in parts.items()
    ]
    columns = ["device", "precision", "part", "hours", "bound_hours"]
    return pd.DataFrame(rows, columns=columns).astype({"hours": float, "bound_hours": float})


def chain_hours(rates: pd.DataFrame, passes: pd.DataFrame) -> pd.Series:
    """Hours of the longest chain on each device: pre-training, then fine-tuning on all subjects, both validated."""
    first, sweep = passes.loc["pre-training"], passes.loc["sweep"]
    trained = first["volumes trained on"] + sweep["epochs of each"] * sweep["volumes per epoch"]
    decoded = first["volumes validated on"] + sweep["volumes validated on"] / sweep["trainings"]
    return (trained / rates["training"] + decoded / rates["decoding"]) / 3600


# ---- more GPUs, more subjects


@dataclass(frozen=True)
class Assumed:
    """Assumptions about GPUs, networks and studies.

    volumes_per_s : that a GPU trains on, if none has been measured
    decoding_times_training : volumes decoded in the time of training on one
    latency_s : of an exchange of gradients between GPUs
    networks_gb_per_s : that a GPU sends over each network; pre-training exchanges gradients over the first
    n_gpus : numbers of GPUs to compare
    n_subjects : of a larger study
    """

    volumes_per_s: float
    decoding_times_training: float
    dollars_per_gpu_hour: float
    latency_s: float
    networks_gb_per_s: dict[str, float]
    n_gpus: tuple[int, ...]
    n_subjects: int


def gpu_rate(steps: pd.DataFrame, assumed: Assumed) -> tuple[str, float]:
    """The first measured GPU and its training rate on HCP's grid, in volumes per second; or "" and the assumed rate."""
    gpus = steps[(steps["kind"] == "cuda") & (steps["shape"] == GRID) & steps["way"].isin(["ours", "ours-compiled"])]
    if gpus.empty:
        return "", float(assumed.volumes_per_s)
    device = str(gpus["device"].iloc[0])
    return device, float(1e3 / gpus.loc[gpus["device"] == device, "training"].min())


def sweep_seconds(passes: pd.DataFrame, n_subjects: Sequence[int], rate: float, assumed: Assumed) -> list[float]:
    """Seconds of the sweep's trainings on one GPU, validation included, the longest first.

    Parameters
    ----------
    n_subjects : of each training (`sweep_subjects`); the largest number is all subjects
    rate : volumes that the GPU trains on per second
    """
    sweep: dict[Any, Any] = passes.loc["sweep"].to_dict()
    trained = sweep["epochs of each"] * sweep["volumes per epoch"] / max(n_subjects)
    validated = sweep["volumes validated on"] / sweep["trainings"] / assumed.decoding_times_training
    return [(n * trained + validated) / rate for n in sorted(n_subjects, reverse=True)]


def many_gpus(
    passes: pd.DataFrame, seconds: Sequence[float], batch: int, rate: float, n_parameters: int, assumed: Assumed
) -> pd.DataFrame:
    """Hours and dollars of the full run on more and more GPUs.

    The GPUs share the batches of pre-training, exchange gradients over the first network, and share the validation
    volumes of pre-training. In the sweep, each takes the next longest training as soon as it is free.

    Parameters
    ----------
    seconds : of the sweep's trainings, the longest first (`sweep_seconds`)
    batch : volumes in a batch of pre-training
    rate : volumes that a GPU trains on per second, in batches of any size
    n_parameters : of the decoder

    Returns
    -------
    `n_gpus`; hours: `pre-training`, `sweep`, `all`, and `divided`, the sweep's if it could be cut anywhere; `dollars`
    """
    first: dict[Any, Any] = passes.loc["pre-training"].to_dict()
    n_steps, rows = pretraining_steps(passes, batch), []
    network = next(iter(assumed.networks_gb_per_s.values()))
    for n in assumed.n_gpus:
        used = min(n, batch)
        pretraining_s = n_steps * (math.ceil(batch / used) / rate + _exchange_s(used, network, n_parameters, assumed))
        pretraining_s += first["volumes validated on"] / rate / assumed.decoding_times_training / n
        busy_s = np.zeros(n)
        for training_s in seconds:
            busy_s[busy_s.argmin()] += training_s
        rows.append((n, pretraining_s / 3600, busy_s.max() / 3600, sum(seconds) / n / 3600))
    table = pd.DataFrame(rows, columns=["n_gpus", "pre-training", "sweep", "divided"])
    table["all"] = table["pre-training"] + table["sweep"]
    return table.assign(dollars=table["all"] * table["n_gpus"] * assumed.dollars_per_gpu_hour)


def _exchange_s(n_gpus: int, gb_per_s: float, n_parameters: int, assumed: Assumed) -> float:
    """Seconds of a ring all-reduce of float32 gradients: each GPU sends 2 (n - 1) / n times their size."""
    if n_gpus == 1:
        return 0.0
    return assumed.latency_s + 2 * (n_gpus - 1) / n_gpus * _FLOAT_BYTES * n_parameters / (gb_per_s * 1e9)


def exchanges(batch: int, rate: float, n_parameters: int, assumed: Assumed, n_gpus: int = 8) -> pd.DataFrame:
    """Time of exchanging gradients, as part of a step whose batch GPUs share.

    Returns
    -------
    `network, gb_per_s`; `exchange_s` and `share` of a step on `n_gpus` GPUs; `n_until_half`, the most GPUs,
    up to one per volume of the batch, whose exchange takes no longer than their arithmetic
    """
    rows = []
    for network, gb_per_s in assumed.networks_gb_per_s.items():
        taken = {n: _exchange_s(n, gb_per_s, n_parameters, assumed) for n in (*range(1, batch + 1), n_gpus)}
        share = {n: exchange / (exchange + batch / n / rate) for n, exchange in taken.items()}
        half = max(n for n in range(1, batch + 1) if share[n] <= 0.5)
        rows.append((network, gb_per_s, taken[n_gpus], share[n_gpus], half))
    return pd.DataFrame(rows, columns=["network", "gb_per_s", "exchange_s", "share", "n_until_half"])


def feeding(results: list[dict[str, Any]], n_gpus: Iterable[int], rate: float, volume_bytes: int) -> pd.DataFrame:
    """The rates at which GPUs need volumes and cold disks deliver them (`loader`).

    Returns
    -------
    `n_gpus`, or `device` and `way` ("by_run", "single"); `volumes_per_s`, `gb_per_s`
    """
    asked = [{"n_gpus": n, "device": "", "way": "", "volumes_per_s": n * rate} for n in n_gpus]
    given = [
        {"n_gpus": 0, "device": r["device"], "way": way, "volumes_per_s": r["volumes_per_s"][way]["cold"]}
        for r in results
        for way in ("by_run", "single")
    ]
    return pd.DataFrame([*asked, *given]).assign(gb_per_s=lambda t: t["volumes_per_s"] * volume_bytes / 1e9)


def index_row_bytes(index: pd.DataFrame) -> float:
    """Bytes in memory per row of a store's index."""
    return float(index.memory_usage(deep=True).sum() / len(index))


def hashing_rate() -> float:
    """Bytes per second that one core checks (SHA-256), measured now on 64 MiB."""
    block = np.random.default_rng(0).bytes(2**26)
    start = time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / (time.perf_counter() - start)


def growth(
    n_subjects: Iterable[int], subject: pd.DataFrame, volume_bytes: int, row_bytes: float, rate: float,
    hash_rate: float, prepared: list[dict[str, Any]],
) -> pd.DataFrame:  # fmt: skip
    """Demands on the same software with more subjects, each with as many volumes as one of HCP.

    Parameters
    ----------
    volume_bytes : of a volume in the store
    row_bytes : of a row of its index (`index_row_bytes`)
    rate : volumes that a GPU trains on per second
    hash_rate : bytes that a core checks per second (`hashing_rate`)
    prepared : results of `prepare`; without one there are no hours of preparing (NaN)

    Returns
    -------
    per number of subjects (the index): `volumes`, `store_bytes`, `index_bytes`, `order_bytes` (of the order of a pass);
    `check_hours` and `prepare_hours` of one core, `pass_hours` of one GPU
    """
    n = pd.Series(list(n_subjects), index=list(n_subjects))
    volumes = n * subject["kept"].sum()
    frames_s = [run["ours"]["seconds"] / run["frames"] for result in prepared[:1] for run in result["runs"][:1]]
    return pd.DataFrame(
        {
            "volumes": volumes,
            "store_bytes": volumes * volume_bytes,
            "index_bytes": volumes * row_bytes,
            "check_hours": volumes * volume_bytes / hash_rate / 3600,
            "prepare_hours": n * subject["acquired"].sum() * (frames_s[0] if frames_s else math.nan) / 3600,
            "pass_hours": volumes / rate / 3600,
            "order_bytes": volumes * np.dtype("int64").itemsize,
        }
    )
