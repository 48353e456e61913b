"""The built-in dataset: task fMRI runs with planted, known activations in the Human Connectome Project's file layout.

Real are the anatomy (MNI152 templates), the network nodes (Seitzman et al. 2020), the tasks' block structure and
EV files (Barch et al. 2013) and the places of the foci (`foci.csv`); everything else is made up. A run is::

    baseline × (1 + (contrast · Σ state regressor × state map + noise) / 100)

where a state's map is Gaussians at its foci on grey matter plus a weaker mixture of network maps, both different from
subject to subject, and its regressor is the blocks convolved with a canonical haemodynamic response. Every random draw
has a seed made from the settings' seed and its purpose, so files do not depend on the order or number of workers.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

from deeplight_core.data.manifest import COLUMNS, run_key
from deeplight_core.preparation import ScannerSettings, SimulationSettings
from deeplight_core.routes import Section
from deeplight_core.system.files import write_whole
from deeplight_core.system.workers import in_processes
from deeplight_core.tasks import BATTERY, HCP_TR_S, TASKS, Task

__all__ = [
    "Anatomy",
    "design",
    "fill",
    "foci",
    "generator",
    "grid",
    "load_anatomy",
    "plan",
    "planted_maps",
    "planted_path",
    "simulate",
    "simulate_run",
    "write_planted",
]

Settings = TypeVar("Settings", bound=Section)

# Amplitudes in percent of the baseline, standard deviations over time.
_THERMAL_2MM = 1.94  # with the physiological parts: tSNR about 50 at 2 mm, 170 at 8 mm
_SMOOTH_NOISE, _NETWORK_NOISE, _GLOBAL_NOISE, _DRIFT, _SPIKE = 0.25, 0.3, 0.15, 0.5, 1.0
_FOCUS_SIGMA_MM, _NODE_SIGMA_MM = 8.0, 8.0
_SHARED_PATTERN, _STATE_PATTERN = 0.25, 0.15  # network mixtures: per task, plus per state
_SPIKE_RATE = 0.01
_BASELINE = 10_000.0  # HCP's grand-mean scaling
_DESIGNS = TASKS | {"BATTERY": BATTERY}


class Anatomy:
    """Templates on one grid, in-mask only.

    shape, affine : the grid, (X, Y, Z) voxels
    mask : (X, Y, Z) bool, the union of all subjects' possible brain masks
    brain : (V,) brain probability; grey : (V,) grey-matter probability; intensity : (V,) baseline, mean 1
    xyz_mm : (V, 3) MNI millimetres
    networks : (N, V) one map per resting-state network, maximum 1
    """

    def __init__(self, resolution_mm: float) -> None:
        from nilearn.datasets import (
            fetch_coords_seitzman_2018,
            load_mni152_brain_mask,
            load_mni152_gm_template,
            load_mni152_template,
        )
        from nilearn.image import new_img_like, resample_img

        self.shape, self.affine = grid(resolution_mm)
        brain_mask = load_mni152_brain_mask(resolution=2)
        templates = {
            "brain": new_img_like(brain_mask, brain_mask.get_fdata().astype(np.float32)),
            "grey": load_mni152_gm_template(resolution=2),
            "intensity": load_mni152_template(resolution=2),
        }
        values = {}
        for name, image in templates.items():
            smooth = gaussian_filter(image.get_fdata().astype(np.float32), max(resolution_mm - 2, 0) / 2 / 2.355)
            values[name] = resample_img(
                new_img_like(image, smooth), target_affine=self.affine, target_shape=self.shape,
                interpolation="linear", copy_header=True, force_resample=True,
            ).get_fdata()  # fmt: skip
        self.mask = values["brain"] > 0.4
        inside = self.mask.T  # (Z, Y, X): in-mask voxels in the order of the file
        self.brain, self.grey, intensity = (values[name].T[inside].astype(np.float32) for name in templates)
        self.intensity = intensity / intensity.mean()
        z, y, x = np.nonzero(inside)
        self.xyz_mm = apply_affine(self.affine, np.stack([x, y, z], axis=1)).astype(np.float32)
        nodes = fetch_coords_seitzman_2018()
        names = np.asarray(nodes.networks)
        self.network_names = sorted(set(names) - {"unassigned"})
        self.networks = np.stack(
            [self.blobs(nodes.rois[["x", "y", "z"]].to_numpy()[names == n], _NODE_SIGMA_MM) for n in self.network_names]
        )
        self.networks /= self.networks.max(axis=1, keepdims=True)

    def blobs(self, centres_mm: np.ndarray, sigma_mm: float, weights: np.ndarray | None = None) -> np.ndarray:
        """Sum of Gaussians at (F, 3) centres, on grey matter; (V,) float32."""
        total = np.zeros(len(self.xyz_mm), np.float32)
        for centre, weight in zip(centres_mm, np.ones(len(centres_mm)) if weights is None else weights, strict=True):
            squared = ((self.xyz_mm - centre.astype(np.float32)) ** 2).sum(axis=1)
            total += np.float32(weight) * np.exp(-squared / (2 * sigma_mm**2))
        return total * (0.2 + 0.8 * self.grey)

    def image(self, values: np.ndarray) -> nib.Nifti1Image:
        """A (V,) map or (T, V) series as NIfTI on the grid, zero outside the mask."""
        frames = values.reshape(-1, values.shape[-1])
        volumes = np.zeros((len(frames), *self.shape[::-1]), np.float32)
        volumes[:, self.mask.T] = frames
        data = volumes.T if values.ndim == 2 else volumes[0].T
        return nib.Nifti1Image(data, self.affine)


@lru_cache(maxsize=2)
def load_anatomy(resolution_mm: float) -> Anatomy:
    """The templates at a resolution, cached."""
    return Anatomy(resolution_mm)


def grid(resolution_mm: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine that cover HCP's 91×109×91 grid at 2 mm, outer edge for outer edge; x runs right to left."""
    x, y, z = (int(np.ceil(n * 2 / resolution_mm - 1e-6)) for n in (91, 109, 91))
    half = (resolution_mm - 2) / 2
    affine = np.diag([-resolution_mm, resolution_mm, resolution_mm, 1.0])
    affine[:3, 3] = [90 - half, -126 + half, -72 + half]
    return (x, y, z), affine


def foci() -> pd.DataFrame:
    """The planted foci: `task, state, region, x, y, z, weight, source`."""
    with files("deeplight_core.data").joinpath("foci.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream, comment="#")


def plan(
    n_train: int,
    n_validation: int,
    tr_s: float = HCP_TR_S,
    runs: tuple[str, ...] = ("LR", "RL"),
    tasks: Sequence[str] = tuple(TASKS),
    first: int = 1,
) -> pd.DataFrame:
    """The manifest of a dataset to simulate: every task for every subject, who are numbered from `first`."""
    rows = []
    for number in range(first, first + n_train + n_validation):
        subject = f"sim{number:03d}"
        for task in tasks:
            for run in runs:
                folder = f"{subject}/MNINonLinear/Results/tfMRI_{task}_{run}"
                rows.append(
                    ["simulated", subject, "", task, run, f"{folder}/tfMRI_{task}_{run}.nii.gz", f"{folder}/EVs",
                     f"{folder}/brainmask_fs.2.nii.gz", tr_s, round(_design_of(task).n_frames * HCP_TR_S / tr_s),
                     "train" if number < first + n_train else "validation", "", ""]
                )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def design(task: str, run: str, seed: int) -> dict[str, pd.DataFrame]:
    """EV files of a run: stem → table of `onset, duration, amplitude` in seconds; the same for every subject."""
    spec, random = _design_of(task), generator(seed, "design", task, run)
    evs: dict[str, list[tuple[float, float]]] = {name: [] for name in [*sum(spec.states.values(), ()), *spec.other_evs]}
    if task == "WM":
        order = random.permutation([f"{n}bk_{c}" for n in (0, 2) for c in ("body", "faces", "places", "tools")])
        for name, onset in zip(order, _block_onsets(8, 27.5, 15, every=2, start=8), strict=True):
            evs[name].append((onset, 27.5))
            for trial in range(10):
                evs[f"{name[:3]}_{'err' if random.random() < 0.1 else 'cor'}"].append((onset + 2.5 + 2.5 * trial, 2.5))
        evs["all_bk_cor"] = sorted(evs["0bk_cor"] + evs["2bk_cor"])
        evs["all_bk_err"] = sorted(evs["0bk_err"] + evs["2bk_err"])
    elif task == "GAMBLING":
        kinds = random.permutation(["win", "win", "loss", "loss"])
        for kind, onset in zip(kinds, _block_onsets(4, 28, 15, every=1, start=8), strict=True):
            evs[kind].append((onset, 28))
            other = "loss" if kind == "win" else "win"
            minority = [["neut", other], ["neut", "neut"], [other, other]][random.integers(3)]
            for trial, name in enumerate(random.permutation([kind] * 6 + minority)):
                evs[f"{name}_event"].append((onset + 3.5 * trial, 3.5))
    elif task == "MOTOR":
        moves = random.permutation(["lf", "rf", "lh", "rh", "t"] * 2)
        for move, onset in zip(moves, _block_onsets(10, 15, 15, every=3, start=8), strict=True):
            evs["cue"].append((onset, 3))
            evs[move].append((onset + 3, 12))
    elif task == "LANGUAGE":
        onset = 2.0
        for _ in range(4):
            story = random.uniform(27, 31)
            for name, length in (("story", story), ("math", 56 - story)):
                evs[name].append((onset, length))
                evs["cue"].append((onset, 1))
                evs[f"present_{name}"].append((onset, length - 6))
                evs[f"question_{name}"].append((onset + length - 6, 3))
                evs[f"response_{name}"].append((onset + length - 3, 3))
                onset += length
    elif task == "SOCIAL":
        kinds = random.permutation(["mental", "rnd"] * 2 + ["mental" if run == "LR" else "rnd"])
        for kind, onset in zip(kinds, _block_onsets(5, 23, 15, every=1, start=6), strict=True):
            evs[kind].append((onset, 23))
            evs["mental_resp" if kind == "mental" else "other_resp"].append((onset, 23))
    elif task == "RELATIONAL":
        kinds = random.permutation(["relation", "match"] * 3)
        for kind, onset in zip(kinds, _block_onsets(6, 18, 16, every=2, start=8), strict=True):
            evs[kind].append((onset, 18))
            if random.random() < 0.3:
                evs["error"].append((onset + 4, 4))
    elif task == "EMOTION":
        first = random.permutation(["fear", "neut"])
        for name, onset in zip([*first] * 3, _block_onsets(6, 21, 0, every=6, start=0), strict=True):
            evs[name].append((onset, 21))
    elif task == "BATTERY":
        for name, onset in zip(random.permutation(list(spec.states)), _block_onsets(13, 30, 5, 1, 5), strict=True):
            evs[name].append((onset, spec.block_s))
    return {
        name: pd.DataFrame([(*b, 1.0) for b in sorted(blocks)], columns=["onset", "duration", "amplitude"])
        for name, blocks in evs.items()
    }


def _design_of(task: str) -> Task:
    if task not in _DESIGNS:
        raise ValueError(f"no design for task {task!r}; the simulated tasks are {', '.join(_DESIGNS)}")
    return _DESIGNS[task]


def _foci_of(task: str, seed: int) -> pd.DataFrame:
    """The foci of a task's states.

    Those of the battery follow a rule: all its tasks share early visual cortex, and each has three nodes of Seitzman et
    al. (2020) to itself, drawn at random, with weights 1, 0.8 and 0.6.
    """
    table = foci()
    if task != "BATTERY":
        return table[table["task"] == task].reset_index(drop=True)
    from nilearn.datasets import fetch_coords_seitzman_2018

    nodes = fetch_coords_seitzman_2018().rois[["x", "y", "z"]].to_numpy(float)
    drawn = generator(seed, "battery").permutation(len(nodes))
    rows = [
        (state, *nodes[drawn[3 * number + rank]], 1.0 - 0.2 * rank)
        for number, state in enumerate(BATTERY.states) for rank in range(3)
    ]  # fmt: skip
    return pd.DataFrame([*rows, ("*", 0, -88, 2, 0.8)], columns=["state", "x", "y", "z", "weight"])


def _block_onsets(n: int, length_s: float, fixation_s: float, every: int, start: float) -> list[float]:
    return [start + i * length_s + (i // every) * fixation_s for i in range(n)]


def planted_maps(task: str, anatomy: Anatomy, seed: int, subject: str | None = None) -> dict[str, np.ndarray]:
    """State → (V,) activation map in units of `contrast`; of one subject, or (None) without individual differences.

    A subject's foci are shifted by 3 mm (SD per axis), vary in gain (SD 20%) and width (15%), network mixtures by 20%.
    """
    table = _foci_of(task, seed)
    shift, gain, width = np.zeros((len(table), 3)), np.ones(len(table)), 1.0
    n = len(anatomy.networks)
    wobble = np.zeros(n)
    if subject is not None:
        random = generator(seed, "subject", subject, task)
        shift = random.normal(0, 3, shift.shape)
        gain = np.exp(random.normal(0, 0.2, len(table)))
        width = float(np.exp(random.normal(0, 0.15)))
        wobble = random.normal(0, 0.2, n)
    shared = _SHARED_PATTERN * generator(seed, "pattern", task).normal(size=n)
    maps = {}
    for state in _design_of(task).states:
        mine = table["state"].isin([state, "*"]).to_numpy()
        own_weight = table.loc[table["state"] == state, "weight"].max()  # gambling's states differ weakly in both parts
        own = _STATE_PATTERN * own_weight * generator(seed, "pattern", task, state).normal(size=n)
        centres = table.loc[mine, ["x", "y", "z"]].to_numpy() + shift[mine]
        weights = table.loc[mine, "weight"].to_numpy() * gain[mine]
        mixture = ((shared + own) * (1 + wobble)).astype(np.float32)
        maps[state] = anatomy.blobs(centres, _FOCUS_SIGMA_MM * width, weights) + mixture @ anatomy.networks
    return maps


def simulate_run(
    row: pd.Series, settings: SimulationSettings
) -> tuple[nib.Nifti1Image, nib.Nifti1Image, dict[str, pd.DataFrame]]:
    """One run of the manifest: BOLD series (X, Y, Z, T), the subject's brain mask, its EV tables."""
    from nilearn.glm.first_level.hemodynamic_models import compute_regressor

    anatomy = load_anatomy(settings.resolution_mm)
    task, n_frames, tr_s = row["task"], int(row["n_volumes"]), float(row["tr_s"])
    random = generator(settings.seed, "run", run_key(row))
    evs = design(task, row["run"], settings.seed)
    maps = planted_maps(task, anatomy, settings.seed, row["subject"])
    frame_times = np.arange(n_frames) * tr_s
    series = np.zeros((n_frames, len(anatomy.brain)), np.float32)
    subject_gain = np.exp(generator(settings.seed, "gain", row["subject"]).normal(0, 0.15))
    patients = settings.patients
    changes = patients.changes if patients and row["group"] == "patient" else {}
    for state, names in _design_of(task).states.items():
        blocks = pd.concat([evs[name] for name in names])
        if blocks.empty:
            continue
        gains = np.exp(random.normal(0, 0.2, len(blocks)))  # from block to block
        condition = np.stack([blocks["onset"], blocks["duration"], gains])
        regressor = compute_regressor(condition, "glover", frame_times)[0].astype(np.float32)
        gain = settings.contrast * subject_gain * (1 + changes.get(state, 0.0))
        series += np.float32(gain) * regressor * maps[state]
    scanner = settings.scanner
    series += np.float32(patients.noise if patients else 1.0) * _noise(
        n_frames, tr_s, anatomy, settings.resolution_mm, random, scanner.drift if scanner else 1.0
    )
    series = np.float32(_BASELINE) * anatomy.intensity * (1 + series / 100)
    mask = anatomy.brain > generator(settings.seed, "mask", row["subject"]).uniform(0.42, 0.55)
    series *= mask
    bold, brain = anatomy.image(series), anatomy.image(mask.astype(np.float32))
    if scanner:
        pose = generator(settings.seed, "pose", row["subject"])
        bold, brain = _as_scanned(bold, brain, scanner, settings.resolution_mm, pose, random)
    bold.header.set_zooms((*bold.header.get_zooms()[:3], tr_s))
    bold.header.set_xyzt_units("mm", "sec")
    return bold, brain, evs


def _as_scanned(
    bold: nib.Nifti1Image,
    brain: nib.Nifti1Image,
    scanner: ScannerSettings,
    resolution_mm: float,
    of_subject: np.random.Generator,
    of_run: np.random.Generator,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A run (X, Y, Z, T) and its mask in scanner space: the head has a pose of its own and moves slowly about it.

    The grid is the subject's own: cubes of 90 to 110% of the resolution, centred on the head up to half a voxel.
    """
    edge_mm = resolution_mm * of_subject.uniform(0.9, 1.1)
    still = [of_subject.normal(0, scanner.pose_mm, 3), of_subject.normal(0, scanner.pose_deg, 3)]
    shape = tuple(int(np.ceil(n * resolution_mm / edge_mm)) for n in brain.shape)
    affine = np.diag([-edge_mm, edge_mm, edge_mm, 1.0])
    middle = apply_affine(brain.affine, (np.array(brain.shape) - 1) / 2)
    centre = middle + still[0] + of_subject.uniform(-0.5, 0.5, 3) * edge_mm
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    steps = of_run.standard_normal((bold.shape[3], 6), np.float32)
    wandering = np.cumsum(steps - steps.mean(axis=0), axis=0)
    wandering *= scanner.motion_mm / np.maximum(wandering.std(axis=0), 1e-6)

    def moved(volume: np.ndarray, motion: np.ndarray, order: int) -> np.ndarray:
        turn = Rotation.from_euler("xyz", still[1] + motion[3:], degrees=True)
        in_head = turn.inv().apply(apply_affine(affine, voxels) - middle - still[0] - motion[:3]) + middle
        places = apply_affine(np.linalg.inv(brain.affine), in_head)
        return map_coordinates(volume, places.T, order=order).reshape(shape)

    data = bold.get_fdata(dtype=np.float32)
    frames = [moved(data[..., t], motion, 1) for t, motion in enumerate(wandering)]
    mask = moved(brain.get_fdata(dtype=np.float32), np.zeros(6), 0)
    return nib.Nifti1Image(np.stack(frames, axis=-1), affine), nib.Nifti1Image(mask, affine)


def _noise(
    n_frames: int,
    tr_s: float,
    anatomy: Anatomy,
    resolution_mm: float,
    random: np.random.Generator,
    drift: float = 1.0,
) -> np.ndarray:
    """(T, V) noise in percent: thermal, smooth and autocorrelated, network-shaped, global, drift, spikes."""
    n_voxels = len(anatomy.brain)
    total = random.standard_normal((n_frames, n_voxels), np.float32)
    total *= np.float32(_THERMAL_2MM * (2 / resolution_mm) ** 1.5)
    total += np.float32(_SMOOTH_NOISE) * _autocorrelated(
        np.stack([_smooth_field(anatomy, resolution_mm, random) for _ in range(n_frames)]), tr_s, 3.0
    )
    courses = _autocorrelated(random.standard_normal((n_frames, len(anatomy.networks)), np.float32), tr_s, 10.0)
    total += np.float32(_NETWORK_NOISE) * (courses @ anatomy.networks)
    total += np.float32(_GLOBAL_NOISE) * _autocorrelated(random.standard_normal((n_frames, 1), np.float32), tr_s, 8.0)
    time = np.linspace(-1, 1, n_frames, dtype=np.float32)[:, None]
    for course in (time, np.cos(np.pi * time + random.uniform(0, 6.28)).astype(np.float32)):
        total += np.float32(drift * _DRIFT) * course * _smooth_field(anatomy, resolution_mm, random)
    for frame in np.flatnonzero(random.random(n_frames) < _SPIKE_RATE):
        total[frame] += np.float32(_SPIKE) * (random.choice([-1, 1]) + _smooth_field(anatomy, resolution_mm, random))
    return total


def _smooth_field(anatomy: Anatomy, resolution_mm: float, random: np.random.Generator) -> np.ndarray:
    """(V,) Gaussian random field, 6 mm sigma, unit variance."""
    field = gaussian_filter(random.standard_normal(anatomy.shape[::-1], np.float32), 6.0 / resolution_mm, mode="wrap")
    return np.asarray(field[anatomy.mask.T] / field.std(), np.float32)


def _autocorrelated(white: np.ndarray, tr_s: float, time_constant_s: float) -> np.ndarray:
    """First-order autoregression along time with unit variance."""
    from scipy.signal import lfilter  # here: it takes a second, which every training would wait for

    rho = np.exp(-tr_s / time_constant_s)
    white[1:] *= np.float32(np.sqrt(1 - rho**2))
    return np.asarray(lfilter([1.0], [1.0, -rho], white, axis=0), np.float32)


def generator(seed: int, *what: str) -> np.random.Generator:
    """Random numbers for one purpose, whatever was drawn before."""
    return np.random.default_rng([seed, zlib.crc32("/".join(what).encode())])


def simulate(manifest: pd.DataFrame, root: str | Path, settings: SimulationSettings, jobs: int | None = None) -> None:
    """Simulate the files of a manifest; runs that exist are kept, so an interrupted simulation goes on.

    Beside the runs, `planted/` holds every state's true map and an atlas of the networks, and `simulation.json` the
    settings.

    Raises
    ------
    ValueError
        If the folder holds a dataset of other settings, or the manifest has tasks without a design.
    """
    if unknown := sorted(set(manifest["task"]) - set(_DESIGNS)):
        raise ValueError(f"cannot simulate task(s) {', '.join(unknown)}; the simulated tasks are {', '.join(_DESIGNS)}")
    fill(manifest, Path(root), settings, write_planted, _simulate_and_write, jobs, "simulated runs")


def fill(
    manifest: pd.DataFrame,
    root: Path,
    settings: Settings,
    begin: Callable[[Path, Settings], None],
    write: Callable[..., None],
    jobs: int | None,
    what: str,
) -> None:
    """Fill a folder with a manifest's simulated images; those that exist are kept.

    Parameters
    ----------
    begin : writes what belongs to the dataset as a whole, before `simulation.json` records its settings
    write : a module-level function of (row, root, settings) that writes a row's files, the image last and whole
    what : name of the images in progress lines

    Raises
    ------
    ValueError
        If the folder holds a dataset of other settings.
    """
    root.mkdir(parents=True, exist_ok=True)
    record = root / "simulation.json"
    stated = settings.model_dump(mode="json", exclude={"subjects"})  # which runs there are, not what is in them
    if record.is_file() and _recorded(record, settings) != stated:
        raise ValueError(
            f"{root} holds a dataset simulated with {record.read_text(encoding='utf-8').strip()}, "
            f"not {json.dumps(stated)}; choose another folder, or delete this one"
        )
    if not record.is_file():
        begin(root, settings)
        record.write_text(json.dumps(stated) + "\n", encoding="utf-8")
    missing = [row for _, row in manifest.iterrows() if not (root / row["image"]).is_file()]
    if missing:
        in_processes(partial(write, root=root, settings=settings), missing, jobs, what)


def _recorded(record: Path, settings: Settings) -> object:
    """What a dataset was simulated with; settings that its version lacked have their defaults."""
    content = json.loads(record.read_text(encoding="utf-8"))
    return {**type(settings)().model_dump(mode="json", exclude={"subjects"}), **content}


def _simulate_and_write(row: pd.Series, root: Path, settings: SimulationSettings) -> None:
    with threadpool_limits(1):
        bold, mask, evs = simulate_run(row, settings)
    folder = root / row["events"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in evs.items():
        table.to_csv(folder / f"{name}.txt", sep="\t", header=False, index=False, float_format="%.3f")
    nib.save(mask, root / row["mask"])
    write_whole(root / row["image"], lambda p: nib.save(bold, p))


def planted_path(root: Path, task: str, state: str) -> Path:
    """Where a dataset keeps the true map of a state."""
    return root / "planted" / f"{task}_{state.replace(' ', '-')}.nii.gz"


def write_planted(root: Path, settings: SimulationSettings) -> None:
    """Write the true map of every state, in units of `contrast`, and the networks, to `planted/`."""
    (root / "planted").mkdir(parents=True, exist_ok=True)
    anatomy = load_anatomy(settings.resolution_mm)
    for task in (settings.subjects and settings.subjects.tasks) or TASKS:
        for state, values in planted_maps(task, anatomy, settings.seed).items():
            nib.save(anatomy.image(values), planted_path(root, task, state))
    nib.save(anatomy.image(_parcels(anatomy)), root / "planted/networks.nii.gz")
    names = pd.DataFrame({"index": range(1, len(anatomy.network_names) + 1), "name": anatomy.network_names})
    names.to_csv(root / "planted/networks.tsv", sep="\t", index=False)


def _parcels(anatomy: Anatomy) -> np.ndarray:
    """(V,) the number, from 1, of the network whose map is largest in a voxel; 0 where none reaches a fifth."""
    return np.where(anatomy.networks.max(axis=0) > 0.2, anatomy.networks.argmax(axis=0) + 1, 0).astype(np.float32)
