"""A training's decoder for others: its weights, mask and record in a folder of their own, with a page in words.

Nothing of persons goes along: no names, no paths, no single predictions or scores.
"""

import html
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import deeplight_core
from deeplight_core.analysis.measures import MEASURES
from deeplight_core.analysis.statistics import t_interval
from deeplight_core.config import FinetuningSettings, digest
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.routes import ROUTES, PretrainingSettings
from deeplight_core.system.files import file_sha256, read_table, write_whole
from deeplight_core.training.checkpoint import load_mask, load_model, save_mask

__all__ = ["card", "export", "mean_scores", "write_exported"]

_ANOTHER = "(an image)"  # stands for a path in exported settings
_OF_TRAINING = {*PretrainingSettings.model_fields, *FinetuningSettings.model_fields} - {"atlas", "weights"}
_OF_TRAINING |= {"route", "variant", "fraction", "seed", "fold", "seen_volumes", "precision", "tasks"}


def export(training: str | Path, folder: str | Path, licence: str = "") -> Path:
    """Write a training's decoder as a folder for others: model.safetensors, model.json, mask.nii.gz, README.md.

    Parameters
    ----------
    licence : of the weights, e.g. CC0-1.0

    Raises
    ------
    ValueError
        If the training has no whole checkpoint, or the folder has files already.
    """
    training = Path(training)
    _, record = load_model(training)  # refuses what is not whole
    mask = load_mask(training, record)
    scores = training / "scores.csv"
    if not scores.is_file():
        raise ValueError(f"{training} is no finished training: it has no scores.csv; run its command again to the end")
    public = {
        "architecture": record["architecture"],
        "data": _without_paths(record["data"]),
        "training": {key: value for key, value in record["training"].items() if key in _OF_TRAINING},
        "n_units": len(record["training"].get("units", [])),
        "n_reported": len(record["training"].get("reported", [])),
        "scores": mean_scores(read_table(scores)),
        "manifest": record.get("manifest", ""),
        "source": record.get("source"),
        "licence": licence,
    }
    return write_exported(training / "model.safetensors", mask, public, Path(folder))


def write_exported(weights: Path, mask: np.ndarray, record: Mapping[str, Any], folder: Path) -> Path:
    """Write an exported folder, its record last.

    Parameters
    ----------
    weights : file in safetensors' format
    mask : (X, Y, Z) bool, of the voxels that the model sees
    record : what model.json will hold, but for the weights' sha256 and the software's version
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not empty; name another folder")
    full = {**record, "sha256": file_sha256(weights), "software": f"deeplight-core {deeplight_core.__version__}"}
    write_whole(folder / "model.safetensors", lambda p: shutil.copyfile(weights, p))
    save_mask(mask, record["data"]["grid"]["affine"], folder)
    write_whole(folder / "README.md", lambda p: p.write_text(card(full, int(mask.sum())), encoding="utf-8"))
    text = json.dumps(full, indent=1) + "\n"
    write_whole(folder / "model.json", lambda p: p.write_text(text, encoding="utf-8"))
    return folder


def _without_paths(data: dict[str, Any]) -> dict[str, Any]:
    settings = dict(data["preprocessing"])
    for key in ("resample_to", "mask"):
        if settings.get(key) not in (None, "hcp2mm", "first"):
            settings[key] = _ANOTHER
    return {**data, "preprocessing": settings}


def mean_scores(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Means over subjects with 95% intervals, by task, target, level and measure.

    Parameters
    ----------
    results : a results table (see `analysis.scores.COLUMNS`)
    """
    found = []
    for key, rows in results.groupby(["task", "target", "level", "measure"], sort=False):
        values = rows.groupby("subject")["score"].agg(lambda of: of.astype(float).mean()).to_numpy()
        low, high = t_interval(values, 0.95) if len(values) > 1 else (None, None)
        named = dict(zip(("task", "target", "level", "measure"), map(str, key), strict=True))
        numbers = {"mean": float(values.mean()), "low": low, "high": high}
        found.append(
            named | {k: v if v is None else round(float(v), 6) for k, v in numbers.items()} | {"n": len(values)}
        )
    return found


# ---- the page


def card(record: Mapping[str, Any], n_voxels: int) -> str:
    """The model card of an exported checkpoint, in Markdown, made of its record."""
    parts = [
        _head(record),
        _results(record),
        _input(record, n_voxels),
        _training(record),
        _use(record),
        _limits(),
    ]
    return "\n\n".join(parts) + "\n"


def _text(value: object) -> str:
    """Somebody's words within a line of Markdown: neither markup nor a new line."""
    plain = " ".join(str(value).split())
    for sign in "\\`*_[]|#":
        plain = plain.replace(sign, f"\\{sign}")
    return html.escape(plain, quote=False)


def _head(record: Mapping[str, Any]) -> str:
    encoder, head = record["architecture"]["encoder"], record["architecture"]["head"]
    route = ROUTES.get(str(record["training"].get("route")))
    source, title = record.get("source") or {}, route.title if route else "unknown way"
    licence = record["licence"] or source.get("licence") or "not stated"
    tags = ["fmri", "neuroimaging", f"encoder-{encoder['name']}"]
    meta = {"library_name": "deeplight-core", "tags": tags, "license": "other", "license_name": licence}
    lines = [
        "---", yaml.safe_dump(meta, sort_keys=False).rstrip(), "---", "",
        f"# A decoder of brain images: {_text(encoder['name'])}, {_text(title)}", "",
        f"Encoder `{encoder['name']}` with a head of kind `{head['name']}`. {_decodes(head)}", "",
        f"**Licence of the weights:** {_text(licence)}.",
    ]  # fmt: skip
    if source:
        lines.append(f"**Origin:** {_text(source['title'])}.")
    return "\n".join(lines)


def _decodes(head: Mapping[str, Any]) -> str:
    targets = head["targets"]
    if head["name"] == "classes":
        by_task: dict[str, list[str]] = {}
        for task, state in targets:
            by_task.setdefault(task, []).append(state)
        return "It tells states: " + "; ".join(f"{_text(t)}: {_text(', '.join(s))}" for t, s in by_task.items()) + "."
    if head["name"] == "numbers":
        return f"It tells numbers: {_text(', '.join(targets))}."
    return "It is a pre-training: fine-tune it on your own labels."


def _results(record: Mapping[str, Any]) -> str:
    if not record["scores"]:
        return "## Accuracy\n\nNot measured with this software."
    lines = [
        "## Accuracy", "", f"Means over {record['n_reported']} held-out subjects (or runs), with 95% intervals.", "",
        "| task | target | level | measure | mean | 95% interval | n |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in record["scores"]:
        measure = MEASURES[row["measure"]]
        interval = "–" if row["low"] is None else f"{measure.format(row['low'])} to {measure.format(row['high'])}"
        cells = [_text(row["task"]), _text(row["target"]), row["level"], measure.title, measure.format(row["mean"])]
        lines.append(f"| {' | '.join(cells)} | {interval} | {row['n']} |")
    return "\n".join(lines)


def _input(record: Mapping[str, Any], n_voxels: int) -> str:
    data = record["data"]
    grid, settings = data["grid"], PreprocessingSettings.model_validate(data["preprocessing"])
    shape, affine = " × ".join(map(str, grid["shape"])), [[round(v, 4) for v in row] for row in grid["affine"][:3]]
    lines = [
        "## What it takes", "",
        f"- Grid: {shape} voxels, orientation {grid['orientation']}, affine `{affine}`.",
        f"- Mask: {n_voxels:,} voxels (`mask.nii.gz`); all others are zero.",
        f"- Values: {_text(data['normalisation'])}.",
    ]  # fmt: skip
    if data["tr_s"] is not None:
        lines.append(f"- Repetition time of the training data: {data['tr_s']:g} s.")
    if clip := record["training"].get("clip"):
        lines.append(f"- Clips of {clip['length_s']:g} s.")
    stated = settings.model_dump(mode="json", exclude={"structural", "mask", "resample_to"})
    if data["tr_s"] is None:
        stated = settings.structural.model_dump(mode="json")
    lines.append("- Preprocessing: " + ", ".join(f"`{key}: {value}`" for key, value in stated.items()) + ".")
    return "\n".join(lines)


def _training(record: Mapping[str, Any]) -> str:
    training = record["training"]
    keys = ("epochs", "batch_size", "learning_rate", "schedule", "seed", "seen_volumes")
    settings = ", ".join(f"{key} {training[key]}" for key in keys if key in training)
    tasks = _text(", ".join(training.get("tasks", []))) or "not stated"
    n = f"{record['n_units']} subjects (or runs). " if record["n_units"] else ""
    lines = ["## Training", "", f"{n}Tasks: {tasks}. {_text(settings)}".strip()]
    if record["manifest"]:
        lines.append(f"Hash of the manifest: `{digest(record['manifest'])}`.")
    return "\n".join(lines)


def _use(record: Mapping[str, Any]) -> str:
    decodes = record["architecture"]["head"]["name"] in ("classes", "numbers")
    lines = ["## How to use it", "", "```bash", "pip install deeplight-core"]
    if decodes:
        lines.append("deeplight decode THIS_FOLDER your_run.nii.gz -o predictions.tsv")
    lines += ["deeplight finetune your_profile.yaml --from THIS_FOLDER", "```", ""]
    lines.append("Images on other grids are resampled to this one; other differences are listed before training.")
    return "\n".join(lines)


def _limits() -> str:
    return (
        "## Limits\n\nFor research; no medical device. Scores hold for people, scanners and tasks like those of the "
        "training. It does not say who was\ntrained on: you must know whether your test subjects were among them."
    )
