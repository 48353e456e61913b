"""Any run through a decoder: what was this person doing?

The runs are prepared as the decoder's training data were, on its grid and with its mask, in a temporary store; all
volumes are decoded, whether events say what they are or not.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from deeplight_core import __version__
from deeplight_core.analysis.calibration import fit_temperature, quality, reliability, with_temperature
from deeplight_core.config import FinetuningSettings, Profile
from deeplight_core.data.cohorts import manifest_of
from deeplight_core.data.events import event_names
from deeplight_core.data.images import read_header
from deeplight_core.data.manifest import COLUMNS, write_manifest
from deeplight_core.data.prepare import prepare
from deeplight_core.data.store import Store
from deeplight_core.experiment import prepare_data
from deeplight_core.models import ENCODERS, Model
from deeplight_core.report import plots
from deeplight_core.system.files import write_whole
from deeplight_core.training import examples as learnt_from
from deeplight_core.training.checkpoint import check_data, data_facts, load_mask, load_model
from deeplight_core.training.examples import Examples
from deeplight_core.training.hub import local
from deeplight_core.training.inference import predict
from deeplight_core.training.loader import Volumes

__all__ = ["Decoded", "decode", "differences", "prepared", "profile_of_image", "write"]

_RUN = ["participant_id", "session", "task", "run"]
_SET_HERE = {f"preprocessing.{key}" for key in ("resample_to", "mask", "keep", "crop", "structural")}
_MEANING = {
    "participant_id": "the subject", "onset": "seconds from the run's first volume to the beginning of this one",
    "duration": "seconds", "trial_type": "the state that the events name; n/a where they name none, or two",
    "block": "number of the block in its run; n/a outside blocks",
    "decoded": "the most probable state, as <task>: <state>", "probability": "its probability",
    "made_of": "block: volumes of a block of the events; segment: volumes in a row that are decoded alike",
    "n_volumes": "number of volumes (or clips)",
}  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """What a decoder says.

    volumes : one row per volume (or clip, or image): `participant_id, session, task, run, onset, duration, trial_type,
        block, decoded, probability`, then each `<task>: <state>`; or of numbers, each column's
    blocks : the same for blocks, or for segments of runs without events, with the means of their probabilities
    calibration : confidence against accuracy on volumes whose state is known; empty if none is
    about : the decoder, what differs, the temperature, and how good probabilities are, before and after
    """

    volumes: pd.DataFrame
    blocks: pd.DataFrame
    calibration: pd.DataFrame
    about: dict[str, Any]


@contextmanager
def profile_of_image(image: Path, events: Path | None = None, tr_s: float | None = None) -> Iterator[Profile]:
    """A profile of a single run; BIDS's names are read.

    Parameters
    ----------
    tr_s : repetition time in seconds; by default that of a sidecar of the same name, or of the image's header

    Raises
    ------
    ValueError
        If a file is missing, it is no run, or its repetition time is not stated.
    """
    header = read_header(image)
    if len(header.shape) != 4:
        raise ValueError(f"{image} is no run: it has the shape {header.shape}; list images with `deeplight manifest`")
    named = dict(re.findall(r"(?:^|_)(sub|ses|task|run)-([A-Za-z0-9.+-]+)", image.name.split(".nii")[0]))
    sidecar = image.with_name(image.name.split(".nii")[0] + ".json")
    if tr_s is None and sidecar.is_file():
        try:
            tr_s = float(json.loads(sidecar.read_text(encoding="utf-8"))["RepetitionTime"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{sidecar} holds no readable RepetitionTime ({error!r}); give --tr") from None
    tr_s = header.tr_s if tr_s is None else tr_s
    if not 0.1 <= tr_s <= 20:
        raise ValueError(f"{image} states a repetition time of {tr_s:g} s; give the right one with --tr")
    files = [path.absolute() for path in (image, events) if path]
    if missing := [str(path) for path in files if not path.exists()]:
        raise ValueError(f"{', '.join(missing)} does not exist")
    root = Path(os.path.commonpath([path.parent for path in files]))
    names = [str(path.absolute().relative_to(root)) if path else "" for path in (image, events)]
    task = named.get("task", "image")
    row = ["run", named.get("sub", "unknown"), named.get("ses", ""), task, named.get("run", "1"), *names, ""]
    with TemporaryDirectory() as folder:
        table = pd.DataFrame([[*row, tr_s, header.shape[3], "validation", "", ""]], columns=list(COLUMNS))
        write_manifest(table, Path(folder) / "manifest.csv")
        states = {name: [name] for name in sorted(event_names(events)[0])} if events else {}
        data = {"manifest": Path(folder) / "manifest.csv", "root": root, "source": {task: states}, "target": {}}
        yield Profile.model_validate({"name": "run", "data": data})


def decode(
    checkpoint: str | Path,
    profile: Profile,
    calibrate: bool = False,
    temperature: float | None = None,
    jobs: int | None = None,
) -> Decoded:
    """Decode all runs of a profile's manifest.

    Parameters
    ----------
    checkpoint : a folder, or ORG/NAME@REVISION of the hub
    calibrate : find the temperature at which probabilities fit best, on subjects of split `train` that the decoder was
        not trained on; how good it is is measured on the others
    temperature : one found earlier, instead

    Raises
    ------
    ValueError
        If the checkpoint decodes nothing, does not fit the data, or there is nobody to calibrate on.
    """
    if calibrate and temperature is not None:
        raise ValueError("a temperature is found (--calibrate) or given (--temperature), not both")
    if temperature is not None and not 0.05 <= temperature <= 20:
        raise ValueError(f"a temperature is between 0.05 and 20, got {temperature:g}")
    folder = local(checkpoint)
    model, record = load_model(folder)
    if model.head.name not in ("classes", "numbers"):
        raise ValueError(
            f"{checkpoint} is a pre-training with a head of kind {model.head.name}, which decodes nothing; fine-tune "
            f"it first (`deeplight finetune … --from {checkpoint}`)"
        )
    with prepared(checkpoint, profile, jobs) as store:
        if not model.encoder.needs_grid and list(store.shape) != record["data"]["grid"]["shape"]:
            _refuse_other_grid(model, folder, store)
        differing = differences(record, folder, store)
        chosen = _examples(record, model, store)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        answers = predict(model.to(device).eval(), Volumes(store, chosen, device)).answer
    about: dict[str, Any] = {
        "sha256": record["sha256"], "software": f"deeplight-core {__version__}", "differences": differing,
    }  # fmt: skip
    if model.head.name == "numbers":
        numbers = pd.DataFrame(answers, columns=[f"predicted {name}" for name in model.head.targets])
        return Decoded(_described(chosen, store).join(numbers), pd.DataFrame(), pd.DataFrame(), about)
    names = [f"{task}: {state}" for task, state in model.head.targets]
    labels = _labels(chosen, names)
    if calibrate:
        temperature = fit_temperature(*_to_calibrate_on(chosen, answers, labels, record, checkpoint))
    reported = (labels >= 0) & (chosen.table["split"] != "train").to_numpy() if calibrate else labels >= 0
    about |= {"temperature": temperature or 1.0, "calibration": None}
    if reported.any():
        about["calibration"] = {"as it is": quality(answers[reported], labels[reported])}
    if temperature:
        answers = with_temperature(answers, temperature)
        if reported.any():
            about["calibration"]["at this temperature"] = quality(answers[reported], labels[reported])
    volumes = _described(chosen, store).join(_said(answers, names))
    bins = reliability(answers[reported], labels[reported]) if reported.any() else pd.DataFrame()
    return Decoded(volumes, _blocks(volumes, names, chosen.table["file"].to_numpy()), bins, about)


def differences(record: dict[str, Any], folder: Path, store: Store) -> list[str]:
    """How data differ from those that a decoder was trained on, beyond their grid (see `checkpoint.check_data`)."""
    found = check_data(record, folder, data_facts(store))
    return [text for text in found if text.split()[0] not in _SET_HERE]


@contextmanager
def prepared(checkpoint: str | Path, profile: Profile, jobs: int | None = None) -> Iterator[Store]:
    """A temporary store of all volumes of a profile's manifest, prepared as a decoder's training data, on its grid."""
    folder = local(checkpoint)
    with TemporaryDirectory() as scratch:
        settings = _prepared_as(load_model(folder)[1], folder, profile)  # refuses a bad one before runs are read
        yield _prepare(settings.stored_in(Path(scratch) / "store"), jobs)


def _prepared_as(record: dict[str, Any], folder: Path, profile: Profile) -> Profile:
    """The profile with the settings of the decoder's training data, its grid and mask, and all volumes (or trials)."""
    settings = dict(record["data"]["preprocessing"])
    if settings.get("structural", {}).get("z_score"):
        raise ValueError(
            f"checkpoint {folder} takes z-scores over its training images, whose means it does not hold; evaluate it "
            "with the profile of its training (`deeplight evaluate`)"
        )
    load_mask(folder, record)
    encoder = record["architecture"]["encoder"]["name"]
    trials = settings.get("example", {}).get("kind", "volume") != "volume"
    settings |= {"resample_to": None, "mask": None, "keep": "labelled" if trials else "all"}
    if ENCODERS[encoder].needs_grid or record["data"]["tr_s"] is not None:
        settings |= {"mask": str(folder / "mask.nii.gz"), "crop": False}
        settings["structural"] = {**settings.get("structural", {}), "resolution_mm": None, "regions": "none"}
    return profile.overridden({"preprocessing": settings, "finetuning": {"atlas": None}})


def _prepare(profile: Profile, jobs: int | None) -> Store:
    if profile.simulated:
        return prepare_data(profile, jobs)
    table = manifest_of(profile)
    return prepare(table[table["task"].isin(profile.data.tasks())].reset_index(drop=True), profile, jobs)


def _refuse_other_grid(model: Model, folder: Path, store: Store) -> None:
    if getattr(model.head.settings, "pooling", "") == "flatten" and len(model.encoder.output_shape) > 1:
        raise ValueError(
            f"{folder} has a head for volumes of {list(model.encoder.shape)}, and these are {list(store.shape)}; bring "
            "them to its grid"
        )


def _examples(record: dict[str, Any], model: Model, store: Store) -> Examples:
    """All volumes, or clips of them, with nothing to compare answers with."""
    chosen = learnt_from.of_anything(store.index, sorted(store.index["task"].unique()))
    if clip := record["training"].get("clip"):
        clips = FinetuningSettings.model_validate({"clip": clip}).clip
        assert clips is not None
        chosen = learnt_from.clips(chosen, **clips.in_frames(store.info["tr_s"]))
    if model.head.name == "classes":
        return replace(chosen, targets=np.zeros(len(chosen), np.int64))
    return replace(chosen, targets=np.full((len(chosen), len(model.head.targets)), np.nan, np.float32))


def _labels(chosen: Examples, names: list[str]) -> np.ndarray:
    """The place of each example's known state among the decoder's, -1 where it has none of them."""
    table = chosen.table
    true = [f"{task}: {state}" for task, state in zip(table["task"], table["state"], strict=True)]
    return pd.Index(names).get_indexer(pd.Index(true))


def _to_calibrate_on(
    chosen: Examples, answers: np.ndarray, labels: np.ndarray, record: dict[str, Any], checkpoint: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Answers and labels of training subjects that the decoder has not seen."""
    table, known = chosen.table, record["training"].get("units")
    if known is None:
        print(f"note: {checkpoint} does not say whom it was trained on; calibrate on none of them", flush=True)
    own = {f"{of}/{unit}" for of in record.get("datasets", []) for unit in known or []}
    people = table["dataset"] + "/" + table["unit"]
    held_out = (table["split"] == "train").to_numpy() & ~people.isin(own).to_numpy() & (labels >= 0)
    if not held_out.any():
        raise ValueError(
            "there is nobody to calibrate on: no subject of split train has volumes of the decoder's states and was "
            "left out of its training; hold some out (`deeplight finetune … --fraction 0.8`)"
        )
    return answers[held_out], labels[held_out]


# ---- tables


def _described(chosen: Examples, store: Store) -> pd.DataFrame:
    """BIDS-like columns of each example."""
    table, length = chosen.table, store.info["tr_s"]
    frames = np.asarray(chosen.members).reshape(len(chosen), -1)
    if length is not None and frames.shape[1] > 1:
        spans = chosen.rows["frame"].to_numpy()[frames]
        length = (spans.max(axis=1) - spans.min(axis=1) + 1) * length
    nothing = store.is_structural
    return pd.DataFrame(
        {
            "participant_id": "sub-" + table["subject"],
            "session": table["session"].replace("", "n/a"),
            "task": table["task"],
            "run": table["run"],
            "onset": "n/a" if nothing else table["onset_s"].round(4),
            "duration": "n/a" if nothing else length,
            "trial_type": table["state"].replace("", "n/a"),
            "block": table["block"].astype(object).where(table["block"] >= 0, "n/a"),
        }
    )


def _said(answers: np.ndarray, names: list[str]) -> pd.DataFrame:
    decoded = np.array(names)[answers.argmax(axis=1)]
    found = pd.DataFrame({"decoded": decoded, "probability": answers.max(axis=1)})
    return found.join(pd.DataFrame(answers, columns=names)).round(6)


def _blocks(volumes: pd.DataFrame, names: list[str], files: np.ndarray) -> pd.DataFrame:
    """Blocks of runs that have some; else segments: volumes in a row that are decoded alike."""
    table = volumes.assign(file=files)
    of_run = table.groupby("file")["block"].transform(lambda of: (of != "n/a").any())
    change = (table["decoded"] != table["decoded"].shift()) | (table["file"] != table["file"].shift())
    table["made_of"] = np.where(of_run, "block", "segment")
    table["number"] = np.where(of_run, table["block"], change.cumsum())
    table = table[table["number"] != "n/a"]
    table = table[table["onset"] != "n/a"]
    if table.empty:
        return pd.DataFrame()
    grouped = table.groupby(["file", "number"], sort=False)
    first = grouped[[*_RUN, "onset", "trial_type", "block", "made_of"]].first()
    end = (table["onset"] + table["duration"]).groupby([table["file"], table["number"]], sort=False).max()
    first.insert(5, "duration", (end - first["onset"]).round(4))
    means = grouped[names].mean()
    rows = first.assign(n_volumes=grouped.size()).reset_index(drop=True)
    return rows.join(_said(means.to_numpy(), names))


def write(decoded: Decoded, output: Path) -> list[Path]:
    """Write `<name>.tsv`, `<name>_blocks.tsv`, `<name>_calibration.tsv` and `.png`, and `<name>.json` about them."""
    if output.suffix != ".tsv":
        raise ValueError(f"predictions are a tab-separated table; name it ….tsv, not {output.name}")
    tables = {"": decoded.volumes, "_blocks": decoded.blocks, "_calibration": decoded.calibration}
    written = []
    for suffix, table in tables.items():
        path = output.with_name(f"{output.stem}{suffix}.tsv")
        if table.empty:
            path.unlink(missing_ok=True)  # of an earlier call
            continue
        write_whole(path, lambda p, table=table: table.to_csv(p, sep="\t", index=False, na_rep="n/a"))  # type: ignore[misc]
        written.append(path)
    picture = output.with_name(f"{output.stem}_calibration.png")
    if decoded.calibration.empty:
        picture.unlink(missing_ok=True)
    else:
        figure = plots.reliability_diagram(decoded.calibration)
        write_whole(picture, lambda p: figure.savefig(p, format="png"))
        plt.close(figure)
        written.append(picture)
    there = [*decoded.volumes.columns, *decoded.blocks.columns]
    columns = {name: {"Description": text} for name, text in _MEANING.items() if name in there}
    text = json.dumps({**columns, "Decoder": decoded.about}, indent=1) + "\n"
    write_whole(output.with_suffix(".json"), lambda p: p.write_text(text, encoding="utf-8"))
    return [*written, output.with_suffix(".json")]
