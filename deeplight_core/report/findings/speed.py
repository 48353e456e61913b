"""Sentences and tables on the cost of the full run, the package's speed, and more GPUs and subjects.

They take the tables of `costs`; `results` are those of one script in `benchmarks` (`costs.measured`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.config import Profile
from deeplight_core.report import costs
from deeplight_core.report.findings.cells import counted
from deeplight_core.routes import VARIANTS

if TYPE_CHECKING:
    from deeplight_core.models.deeplight import Layer

__all__ = [
    "WAYS",
    "arithmetic_note",
    "assumed_table",
    "betas_speed",
    "controls_cost",
    "decoding_speed",
    "exchanges_note",
    "exchanges_table",
    "feeding_note",
    "feeding_table",
    "gpu_note",
    "growth_table",
    "hours_note",
    "hours_table",
    "limits_table",
    "loading_speed",
    "many_gpus_note",
    "many_gpus_table",
    "measured_note",
    "measured_table",
    "not_measured",
    "passes_note",
    "passes_table",
    "preparing_note",
    "preparing_table",
    "processes_note",
    "reading_note",
    "reading_table",
    "same_learning",
    "storage_note",
    "storage_table",
    "subject_note",
    "subject_table",
    "sweep_speed",
    "training_speed",
    "ways_cost_note",
    "ways_cost_table",
]

WAYS = {
    "plain": "plain PyTorch loop",
    "obvious": "PyTorch, obvious settings",
    "keras": "Keras on TensorFlow",
    "ours-float32": "this package, float32",
    "ours": "this package",
    "ours-2": "this package, two processes",
    "ours-compiled": "this package, compiled",
}
"""Titles of the ways to train that `benchmarks/training.py` measures."""

_FORMATS = {
    "float16": "store, float16",
    "int8": "store, int8",
    "npy": "float32 .npy, memory-mapped",
    "webdataset": "WebDataset tar",
    "nifti": "a .nii.gz per volume",
}
_KINDS = {"cpu": "CPU", "cuda": "GPU"}


def _hours(hours: float) -> str:
    """Whole hours from ten on, two digits below."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _styled(
    table: pd.DataFrame, digits: Mapping[str, str | Callable[[Any], str]] | str, index: bool = False
) -> Styler | None:
    """A table whose headers and cells may break into lines; None without rows."""
    if table.empty:
        return None
    styler = table.style.format(dict(digits) if isinstance(digits, Mapping) else digits)
    return (styler if index else styler.hide(axis="index")).set_table_attributes('class="wrapped"')


# ---- the full run


def subject_table(subject: pd.DataFrame) -> Styler | None:
    """Volumes per task that a subject gives (`costs.per_subject`)."""
    table = subject.assign(**{"share kept": subject["kept"] / subject["acquired"]}).reset_index()
    return _styled(table, {"share kept": "{:.0%}"})


def subject_note(subject: pd.DataFrame) -> str:
    """How many volumes a subject gives, in total."""
    kept = subject.groupby("used for")["kept"].sum()
    return (
        f"A subject gives {kept['pre-training']:,} volumes for pre-training and {kept['fine-tuning']:,} for "
        f"fine-tuning, of {subject['acquired'].sum():,} acquired."
    )


def passes_table(passes: pd.DataFrame) -> Styler | None:
    """Volumes that the full run sees (`paper.full_run`)."""
    table = passes.rename(columns={"volumes per epoch": "volumes per epoch (all subjects)"})
    return _styled(table, "{:,}", index=True)


def passes_note(passes: pd.DataFrame, recipe: Profile, n_subjects: Sequence[int]) -> str:
    """Steps of pre-training, and what the sweep consists of (`costs.sweep_subjects`)."""
    sweep, batch = passes.loc["sweep"], recipe.routes.supervised.pretraining.batch_size
    *sizes, most = sorted(set(n_subjects))
    return (
        f"Pre-training takes {costs.pretraining_steps(passes, batch):,} steps of {batch} volumes. The sweep has "
        f"{len(n_subjects)} trainings, on {', '.join(map(str, sizes))} or {most} subjects, and validates on "
        f"{sweep['volumes validated on'] / sweep['volumes trained on']:.1f} times as many volumes as it trains on."
    )


def storage_table(storage: dict[str, int], recipe: Profile) -> Styler | None:
    """Gigabytes on disk, in memory and on the device (`costs.storage`)."""
    batches = recipe.routes.supervised.pretraining.batch_size, costs.evaluation_batch()
    names = {
        "raw": "disk: raw 4-D NIfTI, uncompressed",
        "store": "disk: volume store",
        "pre-training": "memory: volumes of pre-training, unless they are read from disk",
        "linear": "memory: logistic regression on all subjects",
        "training": f"device memory: feature maps of a training step ({batches[0]} volumes)",
        "validation": f"device memory: the two largest feature maps in validation ({batches[1]} volumes)",
    }
    return _styled(pd.Series(storage).rename(names).div(1e9).to_frame("GB"), "{:,.1f}", index=True)


def storage_note(n_voxels: int) -> str:
    """Which voxels are stored, and which amounts need care."""
    return (
        f"The MNI152 brain mask holds {n_voxels:,} of the grid's {math.prod(costs.GRID):,} voxels. Logistic regression "
        "needs all its volumes in memory at once, raw and scaled, and those to decode. It is a control, which `make "
        "reproduce` does not run here: give its jobs that memory, or remove `linear` from the lists in `controls`. The "
        "last two rows are lower bounds, in 32 bits."
    )


def preparing_table(preparing: pd.DataFrame) -> Styler | None:
    """Time and memory of preparing, per device and path (`costs.preparing`)."""
    table = preparing.assign(path=preparing["path"].replace("ours", "this package"))
    names = {
        "seconds": "seconds per run",
        "peak_gb": "peak memory (GB)",
        "all_hours": "hours for all, one after another",
    }
    return _styled(table.rename(columns=names), dict.fromkeys(names.values(), "{:,.1f}"))


def preparing_note(results: list[dict[str, Any]]) -> str:
    """How much faster than nilearn this package prepares, and how close the results are (`prepare`)."""
    return " ".join(
        f"On {result['device']} this package is {result['times_as_fast']:.1f} times as fast as nilearn, and its "
        f"z-scores differ from nilearn's by at most {result['largest_difference_before_float16']:.0e}."
        for result in results
    )


def betas_speed(results: list[dict[str, Any]]) -> str:
    """How much faster than nilearn this package estimates betas, and how close they are (`betas`)."""
    return " ".join(
        f"On {result['device']}, the betas of {result['trials']} trials of a run of {result['frames']} volumes "
        f"({result['n_voxels']:,} voxels) are ready {result['times_as_fast']:.0f} times as fast as from nilearn, and "
        f"differ from nilearn's by at most {result['largest_difference']:.0e}, in units of their noise."
        for result in results
    )


def processes_note(results: list[dict[str, Any]]) -> str:
    """How preparing scales with processes and with runs (`scaling`)."""
    said = []
    for result in results:
        processes, memory = result["processes"], result["many_runs"]["most_over_fewest"]
        plain, packed = (processes["jobs"] * processes[k]["efficiency_without_startup"] for k in ("nii", "nii.gz"))
        said.append(
            f"On {result['device']}, {processes['jobs']} processes prepare uncompressed files {plain:.2f} times as "
            f"fast as one, and compressed files {packed:.2f} times: there, one process already decompresses in a "
            f"second thread and keeps {processes['nii.gz']['with_one']['cores_busy']:.2f} cores busy (start-up not "
            f"counted; `python benchmarks/scaling.py`). With {memory['runs']:.0f} times as many runs, the peak memory "
            f"of a worker is {memory['worker_peak_mb']:.2f} times as high, and that of the process that writes the "
            f"index {memory['parent_peak_mb']:.2f} times."
        )
    return " ".join(said)


def reading_table(reading: pd.DataFrame) -> Styler | None:
    """Volumes per second of each format (`costs.reading`)."""
    table = reading.replace({"format": _FORMATS}).rename(columns={"bytes_per_voxel": "bytes per voxel"})
    digits = dict.fromkeys(table.columns[1:], "{:,.0f}") | {"bytes per voxel": "{:.2f}"}
    return _styled(table, digits)


def reading_note(result: dict[str, Any]) -> str:
    """The device, the store's savings, the cost of int8, and whether a memory map is faster (`store`)."""
    formats, rounding = result["formats"], result["formats"]["int8"]["rounding"]
    warm = result["float16_times_as_fast_as"]["npy"]["random"]["warm"]
    return (
        f"Measured on {result['device']} with {counted(result['threads'], 'thread')}. The store takes "
        f"{formats['float16']['times_smaller_than_tfrecords']:.1f} times less space than float32 whole volumes in "
        f"TFRecords would. int8 takes {formats['int8']['bytes'] / formats['float16']['bytes']:.0%} of that; it moves "
        f"the z-scores of these random volumes by {max(r['rounding_rms'] for r in rounding):.3f} (root mean square) "
        f"and by {max(r['rounding_largest'] for r in rounding):.3f} at most."
        + (
            f" From the cache, a memory map of float32 is {1 / warm:.1f} times as fast: it converts nothing."
            * (warm < 1)
        )
    )


def arithmetic_note(layers: "list[Layer]", passes: pd.DataFrame) -> str:
    """Operations per volume and of the full run, and the layer that takes most of them."""
    decoding, training = costs.volume_flops(layers)
    largest = max(layers, key=lambda layer: layer.flops)
    return (
        f"Decoding a volume takes {decoding / 1e9:.1f} GFLOP, training on it {training / 1e9:.1f} GFLOP. One layer "
        f"takes {largest.flops / decoding:.0%} of that: `{largest.name}`, which works on "
        f"{' × '.join(map(str, largest.output_shape[2:]))} voxels per slice. The whole run takes "
        f"{costs.total_flops(layers, passes) / 1e18:.1f} EFLOP, for a decoder of "
        f"{sum(layer.n_parameters for layer in layers):,} parameters."
    )


def measured_table(rates: pd.DataFrame) -> Styler | None:
    """Volumes per second per device and precision (`costs.rates`)."""
    table = rates.assign(flops_per_s=rates["flops_per_s"] / 1e12, copy_bytes_per_s=rates["copy_bytes_per_s"] / 1e9)
    names = {
        "training": "trained volumes/s",
        "decoding": "decoded volumes/s",
        "flops_per_s": "TFLOP/s",
        "copy_bytes_per_s": "copied GB/s",
    }
    digits = dict.fromkeys([*names.values(), "load"], "{:,.2f}")
    return _styled(table.drop(columns="kind").rename(columns=names), digits)


def measured_note(rates: pd.DataFrame) -> str:
    """Which kind of device has not been measured, which was busy, and how good the rates are."""
    busy = rates.loc[(rates["kind"] == "cpu") & (rates["load"] > 1), "device"].unique()
    said = [_missing_kinds(rates["kind"])]
    if len(busy):
        said.append(f"Other programs ran while {', '.join(busy)} was measured (see *load*): it is faster when idle.")
    if len(rates):
        said.append("Rates are medians of a few steps, so the hours derived from them are rough estimates.")
    return " ".join(filter(None, said))


def _missing_kinds(kinds: pd.Series) -> str:
    return " ".join(
        f"**No {title} has been measured**: `python benchmarks/training.py --device {kind}` measures one."
        for kind, title in _KINDS.items()
        if kind not in set(kinds)
    )


def ways_cost_table(ways: pd.DataFrame) -> Styler | None:
    """Volumes that each way to pre-train sees in the comparison (`costs.ways`)."""
    titles = {
        "n_pretrainings": "pre-trainings", "pretraining_volumes": "volumes, pre-training",
        "n_finetunings": "fine-tunings", "finetuning_volumes": "volumes, fine-tuning",
    }  # fmt: skip
    named = ways.assign(variant=ways["variant"].map({v: VARIANTS[v].title for v in ways["variant"]}))
    return _styled(named.rename(columns={"variant": "decoder", **titles}), {title: "{:,}" for title in titles.values()})


def ways_cost_note(ways: pd.DataFrame, rates: pd.DataFrame) -> str:
    """Hours of the comparison on each measured device, all encoded volumes at the rate of DeepLight's training."""
    total, rows = int(ways[["pretraining_volumes", "finetuning_volumes"]].to_numpy().sum()), rates.to_dict("records")
    hours = [f"{_hours(total / row['training'] / 3600)} on {row['device']} ({row['precision']})" for row in rows]
    return (
        f"Together {total:,} volumes. At the rate at which DeepLight trains by supervision, without validation, they "
        f"take these hours: {'; '.join(hours) or 'no device has been measured'}. Other heads change that a little."
    )


def hours_table(hours: pd.DataFrame) -> Styler | None:
    """Hours per device, precision and part, and in all (`costs.device_hours`); None without any."""
    if hours.empty:
        return None
    parts = list(hours["part"].unique())
    by = ["device", "precision"]
    total = hours.groupby(by)[["hours", "bound_hours"]].sum()
    table = hours.pivot(index=by, columns="part", values="hours")[parts].assign(
        **{"all": total["hours"], "all (days)": total["hours"] / 24, "least by arithmetic": total["bound_hours"]}
    )
    return _styled(table.rename_axis(columns=None).reset_index(), dict.fromkeys(table.columns, _hours))


def hours_note(hours: pd.DataFrame, rates: pd.DataFrame, passes: pd.DataFrame, recipe: Profile) -> str:
    """The fastest device: its hours, what takes most of them, its distance from arithmetic and its longest chain."""
    if hours.empty:
        return ""
    total = hours.groupby(["device", "precision"], as_index=False)[["hours", "bound_hours"]].sum()
    best: dict[Any, Any] = total.nsmallest(1, "hours").iloc[0].to_dict()
    device, precision, all_h = best["device"], best["precision"], best["hours"]
    parts = hours[(hours["device"] == device) & (hours["precision"] == precision)].set_index("part")["hours"]
    same = rates[(rates["device"] == device) & (rates["precision"] == precision)]
    return (
        f"The fastest is {device} in `{precision}`: {_hours(all_h)} hours ({all_h / 24:,.1f} days) for everything, "
        f"most of them for *{parts.idxmax()}* ({parts.max() / all_h:.0%}). That is "
        f"{all_h / best['bound_hours']:.1f} times what the arithmetic alone would take. With a device for each "
        "training, the longest chain counts: pre-training, then fine-tuning on all subjects, "
        f"{_hours(costs.chain_hours(same, passes).iloc[0])} hours. The paper's profile asks for "
        f"`{recipe.routes.supervised.pretraining.precision}`."
    )


def controls_cost(controls: costs.Controls, passes: pd.DataFrame) -> str:
    """What the controls add to the full run (`costs.controls`)."""
    return (
        f"The controls add {controls.n_pretrainings} pre-trainings, {controls.n_finetunings} fine-tunings and "
        f"{controls.n_linear} linear models: {controls.n_volumes / 1e6:,.0f} million volumes to train on, "
        f"{controls.n_volumes / passes['volumes trained on'].sum():.1f} times those of the run above. Remove from "
        "`controls` in the profile what you can do without; each further seed or task needs its own pre-training."
    )


# ---- speed


def not_measured(results: dict[str, list[dict[str, Any]]]) -> str:
    """Which scripts have no result, and whether a GPU's training step has been measured.

    Parameters
    ----------
    results : of each script, "training" among them
    """
    said = [f"**Not measured:** run `python benchmarks/{script}.py`." for script, found in results.items() if not found]
    if not any(result["kind"] == "cuda" for result in results["training"]):
        said.append(
            "**No training step has been measured on a GPU.** `python benchmarks/training.py --device cuda` measures "
            "one, and its result will appear here."
        )
    return " ".join(said)


def training_speed(steps: pd.DataFrame) -> str:
    """Volumes per second that this package trains on, also relative to others; a line per grid."""
    lines = []
    for (device, mm, _), rows in steps.groupby(["device", "mm", "batch"], sort=False):
        ms = rows.set_index("way")["training"]
        others = [f"{ms[way] / ms['ours']:.1f} times as many as *{WAYS[way]}*"
                  for way in ("plain", "obvious", "keras") if way in ms]  # fmt: skip
        lines.append(
            f"- At {mm} mm on {device}, one process of this package trains on {1e3 / ms['ours']:,.0f} volumes per "
            "second" + (f": {', '.join(others)}." if others else ".")
        )
    return "\n".join(lines)


def limits_table(limits: pd.DataFrame) -> Styler | None:
    """Our step beside the device's limits (`costs.limits`)."""
    names = {
        "device": "device",
        "mm": "mm",
        "batch": "batch",
        "flops": "GFLOP per volume",
        "training": "ms per volume",
        "arithmetic_ms": "least by arithmetic (ms)",
        "copying_ms": "least by copying (ms)",
        "of_limit": "of the limit",
        "idle": "waiting for data",
        "load": "load",
    }
    table = limits.assign(flops=limits["flops"] / 1e9)[list(names)].rename(columns=names)
    digits = dict.fromkeys([names[n] for n in ("flops", "training", "arithmetic_ms", "copying_ms")], "{:.2f}")
    return _styled(table, digits | {"of the limit": "{:.0%}", "waiting for data": "{:.1%}", "load": "{:.1f}"})


def same_learning(results: list[dict[str, Any]]) -> str:
    """How much the losses in float32 and bfloat16 differ, and those of two float32 seeds (`training`)."""
    said = []
    for result in results:
        if not result["curves"]:
            continue
        single, half = (np.array(result["curves"][precision]) for precision in ("32-true", "bf16-mixed"))
        gap = np.abs(single.mean(axis=0) - half.mean(axis=0))
        said.append(
            f"On {result['device']}, the means over {len(single)} seeds differ by {gap.mean():.3f} on average and by "
            f"{gap.max():.3f} at most; two seeds in float32 differ by {np.abs(single[0] - single[1]).mean():.3f} on "
            f"average. The last value is {single[:, -1].mean():.3f} in float32 and {half[:, -1].mean():.3f} in "
            f"bfloat16; guessing gives {np.log(16):.3f}."
        )
    return " ".join(said)


def decoding_speed(steps: pd.DataFrame) -> str:
    """How many volumes this package decodes in the time of training on one, per grid."""
    ours = steps[steps["way"] == "ours"]
    if ours.empty:
        return ""
    n = [
        ", ".join(f"{row['training'] / row['decoding']:.1f} at {row['mm']} mm" for row in rows.to_dict("records"))
        + f" on {device}"
        for device, rows in ours.groupby("device", sort=False)
    ]
    return f"In the time that it takes to train on one volume, this package decodes {'; '.join(n)}."


def loading_speed(results: list[dict[str, Any]], steps: pd.DataFrame) -> str:
    """Volumes per second that one core loads and that training needs, and the memory held (`loader`)."""
    said = []
    for result in results:
        speed, mb = result["volumes_per_s"], result["bytes_per_volume"] / 1e6
        of_grid = steps[
            (steps["device"] == result["device"]) & (steps["shape"] == costs.GRID) & (steps["way"] == "ours")
        ]
        asked = f"; training on the same grid needs {1e3 / of_grid['training'].min():,.0f}" if len(of_grid) else ""
        streamed = max(speed[way]["held_mb"] for way in ("single", "by_run"))
        held = "memory of the GPU" if result["kind"] == "cuda" else f"{speed['memory']['held_mb']:,.0f} MB"
        said.append(
            f"On {result['device']}, one core gives {speed['memory']['warm']:,.0f} volumes per second from memory and "
            f"{speed['by_run']['cold']:,.0f} ({speed['by_run']['cold'] * mb / 1e3:.1f} GB/s) run by run from a cold "
            f"disk{asked}. In memory, the {result['volumes'] * mb:,.0f} MB of the store take "
            f"{held}; streamed, they take {streamed:,.0f} MB at most, and more volumes "
            "would take no more."
        )
    return " ".join(said)


def sweep_speed(results: list[dict[str, Any]]) -> str:
    """Minutes of a whole sweep, by this package and by the plain loop (`sweep`)."""
    return " ".join(
        f"On {result['device']} with {result['cores']} cores, {result['trainings']} fine-tunings "
        f"({result['volumes_trained_on']:,} volumes trained on, {result['volumes_decoded']:,} decoded) take "
        f"{result['ours_s'] / 60:.1f} minutes; the plain loop needs {result['plain_s'] / 60:.1f} minutes, "
        f"**{result['times_as_fast']:.1f} times** as long."
        for result in results
    )


# ---- more GPUs, more subjects


def assumed_table(assumed: costs.Assumed) -> Styler | None:
    """All assumptions."""
    rows = {
        "volumes per second that a GPU trains on, if none has been measured": assumed.volumes_per_s,
        "volumes decoded in the time of training on one": assumed.decoding_times_training,
        "US dollars per GPU hour": assumed.dollars_per_gpu_hour,
        "least microseconds of an exchange between GPUs": 1e6 * assumed.latency_s,
        **{f"GB/s over {network}": gb_per_s for network, gb_per_s in assumed.networks_gb_per_s.items()},
        "subjects of a larger study": assumed.n_subjects,
    }
    return _styled(pd.Series(rows, dtype=float).to_frame("assumed"), "{:,g}", index=True)


def gpu_note(device: str, rate: float) -> str:
    """Where the page's rate comes from (`costs.gpu_rate`)."""
    if device:
        return f"The rate is the one measured on {device}: {rate:,.0f} volumes per second."
    return (
        f"**No GPU has been measured.** The hours below assume {rate:,.0f} volumes per second; `python "
        "benchmarks/training.py --device cuda` measures one."
    )


def many_gpus_table(hours: pd.DataFrame) -> Styler | None:
    """Hours and dollars by number of GPUs (`costs.many_gpus`)."""
    names = {
        "n_gpus": "GPUs",
        "pre-training": "pre-training (h)",
        "sweep": "sweep (h)",
        "divided": "sweep, if it could be cut anywhere (h)",
        "all": "all (h)",
        "dollars": "US dollars",
    }
    digits = dict.fromkeys(["pre-training (h)", "sweep (h)", names["divided"], "all (h)"], "{:,.2f}")
    return _styled(hours[list(names)].rename(columns=names), digits | {"US dollars": "{:,.0f}"})


def many_gpus_note(hours: pd.DataFrame, seconds: Sequence[float], batch: int) -> str:
    """What more GPUs gain and cost, and why they gain no more (`costs.many_gpus`, `costs.sweep_seconds`)."""
    first, *more = hours.to_dict("records")
    if not more:
        return ""
    times = [f"{_gpus(row['n_gpus'])} {first['all'] / row['all']:.1f} times" for row in more]
    each = math.ceil(batch / more[0]["n_gpus"])
    return (
        f"Compared with {_gpus(first['n_gpus'])}, the whole run is faster: with {', with '.join(times)}. The last "
        f"costs {more[-1]['dollars'] / first['dollars']:.1f} times as much. The sweep has {len(seconds)} trainings, "
        f"and the longest, on all subjects, takes {max(seconds) / 3600:.2f} hours by itself; a batch of {batch} has no "
        f"work for more than {batch} GPUs. The hours are lower bounds: a GPU with {each} volumes at a time is less "
        f"efficient than one with {batch}. Larger batches would scale further, but that is not the paper's recipe. A "
        "large machine suits the many small trainings of the sweep and its controls."
    )


def _gpus(n: int) -> str:
    return f"{n} GPU" if n == 1 else f"{n} GPUs"


def exchanges_table(exchanges: pd.DataFrame) -> Styler | None:
    """The exchange of gradients over each network (`costs.exchanges`)."""
    table = exchanges.assign(exchange_s=1e6 * exchanges["exchange_s"])
    names = {
        "gb_per_s": "GB/s",
        "exchange_s": "exchange (µs)",
        "share": "share of a step on 8 GPUs",
        "n_until_half": "GPUs until half of a step",
    }
    digits = {"GB/s": "{:g}", "exchange (µs)": "{:,.0f}", "share of a step on 8 GPUs": "{:.0%}"}
    return _styled(table.rename(columns=names), digits)


def exchanges_note(exchanges: pd.DataFrame, n_parameters: int, batch: int, rate: float) -> str:
    """How much a step exchanges, and over which networks this is the limit (`costs.exchanges`)."""
    slow = exchanges.loc[exchanges["share"] > 0.5, "network"]
    return (
        f"The decoder has {n_parameters:,} parameters, so a step exchanges {4 * n_parameters / 1e6:.1f} MB of "
        f"gradients; one GPU takes {rate / batch:,.0f} steps per second. "
        + (
            f"The exchange takes more than half of a step on 8 GPUs over {' and '.join(slow)}: there the network is "
            "the limit."
            if len(slow)
            else "On 8 GPUs none of these networks is the limit."
        )
    )


def feeding_table(feeding: pd.DataFrame) -> Styler | None:
    """The rates that GPUs need and disks deliver (`costs.feeding`)."""
    ways = {"by_run": "run by run", "single": "single volumes"}
    names = [
        f"delivered by the cold disk of {row['device']}, one core: {ways[row['way']]}"
        if row["device"]
        else f"needed by {_gpus(row['n_gpus'])}"
        for row in feeding.to_dict("records")
    ]
    table = pd.DataFrame({"": names, "volumes per second": feeding["volumes_per_s"], "GB/s": feeding["gb_per_s"]})
    return _styled(table, {"volumes per second": "{:,.0f}", "GB/s": "{:,.1f}"})


def feeding_note(feeding: pd.DataFrame, passes: pd.DataFrame, volume_bytes: int) -> str:
    """Whether a disk is fast enough for a GPU, and what to keep in memory instead (`costs.feeding`)."""
    asked = feeding.loc[feeding["device"] == "", "volumes_per_s"].min()
    given = feeding.loc[feeding["device"] != "", "volumes_per_s"].max()
    store_gb = passes["volumes per epoch"] * volume_bytes / 1e9
    measured = (
        "" if np.isnan(given) else f"The fastest measured disk delivers {given / asked:.1f} times what one GPU needs. "
    )
    return (
        f"{measured}If a disk delivers less, keep the training volumes in the GPU's memory: those of the target task "
        f"take {store_gb['sweep']:,.0f} GB, those of pre-training {store_gb['pre-training']:,.0f} GB (half of that "
        "with `storage: int8`). Volumes that do not fit are streamed run by run, from as many disks as the rate needs, "
        "or from the node's memory, where the system caches files by itself."
    )


def growth_table(growth: pd.DataFrame) -> Styler | None:
    """What grows with the number of subjects (columns; `costs.growth`)."""
    rows = {
        "labelled volumes (millions)": growth["volumes"] / 1e6,
        "store (TB)": growth["store_bytes"] / 1e12,
        "index in memory (GB)": growth["index_bytes"] / 1e9,
        "checking all checksums, one core (hours)": growth["check_hours"],
        "preparing, one core (hours)": growth["prepare_hours"],
        "one pass of one GPU (hours)": growth["pass_hours"],
        "order of a pass (GB)": growth["order_bytes"] / 1e9,
    }
    return _styled(pd.DataFrame(rows).T.rename(columns="{:,} subjects".format), "{:,.1f}", index=True)
