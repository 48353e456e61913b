"""Simulated cohorts of structural images, with planted, known effects of disease, age and sex, as a BIDS folder.

Real are the anatomy (MNI152 templates) and the places of the effects (`regions.csv`, with sources); everything else is
made up. A person's brain is the template's grey matter, white matter and cerebrospinal fluid, changed in three steps:

1. In some places tissue gives way to fluid, ventricles grow, white matter turns into lesions: by chance, and by age,
   sex and diagnosis. Everyone has some of each disease's pattern (`_PATTERN_SD`), so that patients and others overlap.
2. A smooth deformation, the size of the head and its position move everything.
3. A scanner turns tissue into intensities: contrast of the sequence, bias field, noise.

All scans of a person share steps 1 and 2, but for small changes from session to session. Every random draw has a seed
made from the settings' seed and its purpose, so files depend neither on the order or number of workers nor, but for
noise, on the grid.
"""

import json
import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

from deeplight_core.config import Profile
from deeplight_core.data import clinic
from deeplight_core.data.manifest import COLUMNS, assign_splits, read_manifest, write_manifest
from deeplight_core.data.simulate import fill, generator
from deeplight_core.data.simulate import plan as plan_runs
from deeplight_core.preparation import CohortSettings
from deeplight_core.system.files import write_whole
from deeplight_core.tasks import TASKS

__all__ = ["Tissues", "grid", "manifest_of", "people", "plan", "planted_path", "regions", "simulate_cohort",
           "simulate_scan", "tissues"]  # fmt: skip

_EFFECTS = ("AD", "PD", "CVD", "age", "sex", "fluid", "smoking")
_DISEASES = _EFFECTS[:3]
_INCOME = ("below 18,000", "18,000 to 30,999", "31,000 to 51,999", "52,000 to 100,000", "above 100,000")
_SMOKING = {"never": 0.0, "previous": 0.5, "current": 1.0}  # and how much of its effect
_SMOKE = (0.6, 0.32, 0.08)  # shares of people
_FLUID_MEAN, _FLUID_SD = 6.6, 2.1
_UNKNOWN = 0.05  # share of each phenotype's values that are missing
_AGE_YEARS = {"AD": 74.0, "CN": 74.0, "CVD": 74.0, "PD": 62.0, "HC": 62.0}  # means; people compared are of equal age
_WOMEN = {"AD": 0.5, "CN": 0.5, "CVD": 0.5, "PD": 0.35, "HC": 0.35}  # shares
_AGE_SD_YEARS, _AGE_RANGE = 7.0, (50.0, 92.0)
_PATTERN_SD = 0.4  # of everyone's amount of a disease's pattern; a patient's is 1 more

_VIEW_MM = np.array([162.0, 192.0, 162.0])  # the template's brain and a margin
_CENTRE_MM = np.array([0.0, -17.0, 5.0])
_GREY_SD, _CORTEX_SD, _VENTRICLE_SD, _LESION_SD = 0.08, 0.02, 0.2, 0.03  # by chance, as shares of the tissue
_LESIONS = 0.1  # in everyone, share of the white matter where lesions are
_DEFORMATION_MM = ((40.0, 1.5), (20.0, 0.6))  # spacing of nodes, SD of the displacement along each axis
_HEAD_SD = 0.016  # of its length
_SESSION_MM, _SHIFT_MM, _TILT_DEGREES = 0.15, 0.7, 0.7
_LATTICE_MM = 4  # of changes of tissue
_SOFT_MM = 1.5  # width of a region's border

# Intensity of fluid, grey matter, white matter, lesion
_CONTRAST = {"T1w": (0.22, 0.66, 1.0, 0.55), "T2w": (1.0, 0.62, 0.42, 0.85)}


class Tissues(NamedTuple):
    """Shares of a voxel, each (X, Y, Z) float32 in [0, 1]; fluid is what else there is of the brain."""

    brain: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    lesion: np.ndarray

    def of(self, tissue: str) -> np.ndarray:
        """The map that a region's `tissue` names."""
        if tissue == "csf":
            return self.brain - self.grey - self.white - self.lesion
        return self.grey + self.white if tissue == "brain" else np.asarray(getattr(self, tissue))


def grid(shape: tuple[int, int, int]) -> np.ndarray:
    """Affine (4, 4) of a grid of cubic voxels that covers the template's brain with a margin: 162×192×162 mm."""
    edge = float((_VIEW_MM / shape).max())
    affine = np.diag([edge, edge, edge, 1.0])
    affine[:3, 3] = _CENTRE_MM - edge * (np.array(shape) - 1) / 2
    return affine


def _axes(shape: tuple[int, ...], affine: np.ndarray) -> list[np.ndarray]:
    """Millimetres along x, y, z."""
    return [affine[k, 3] + affine[k, k] * np.arange(n) for k, n in enumerate(shape)]


def regions() -> pd.DataFrame:
    """The planted effects: `effect, region, x, y, z, radius_mm, tissue, d, change, source`."""
    with files("deeplight_core.data").joinpath("regions.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream, comment="#")


def _sphere(axes: list[np.ndarray], region: dict[str, Any]) -> np.ndarray:
    """(X, Y, Z) weights of a region: 1 inside its sphere, 0 outside, with a soft border."""
    squares = [(axis - centre) ** 2 for axis, centre in zip(axes, (region["x"], region["y"], region["z"]), strict=True)]
    distance = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
    return (1 / (1 + np.exp(np.clip((distance - region["radius_mm"]) / _SOFT_MM, -30, 30)))).astype(np.float32)


class _Place(NamedTuple):
    """Where a region's tissue changes on the lattice, and the share to change there that changes all by its amount."""

    box: tuple[slice, ...]
    weights: np.ndarray
    tissue: str


class _Template:
    """The template: `maps` of brain, grey and white matter at 1 mm, and `places` of changes on a `lattice` of 4 mm.

    origin : (3,) millimetres of the first voxel of maps and lattice
    """

    def __init__(self) -> None:
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

        mask, *matter = (
            load(resolution=1) for load in (load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template)
        )
        low = np.maximum(np.round(_CENTRE_MM - _VIEW_MM / 2 - 10 - mask.affine[:3, 3]).astype(int), 0)
        box = tuple(slice(a, a + int(b) + 20) for a, b in zip(low, _VIEW_MM, strict=True))
        brain = np.asarray(mask.dataobj[box], np.float32)
        self.maps = [brain, *(np.minimum(np.asarray(image.dataobj[box], np.float32), brain) for image in matter)]
        self.origin = mask.affine[:3, 3] + low
        brain, grey, white = self.blurred(_LATTICE_MM, _LATTICE_MM)
        self.lattice = [start + _LATTICE_MM * np.arange(n) for start, n in zip(self.origin, brain.shape, strict=True)]
        on_lattice = Tissues(brain, grey, white, np.zeros_like(brain))
        near_fluid = np.clip(gaussian_filter(on_lattice.of("csf"), 1) / 0.4, 0, 1)
        places: Any = _effects().query("tissue != 'size'").drop_duplicates("region").to_dict("records")
        self.places = {place["region"]: self._place(place, on_lattice, near_fluid) for place in places}

    def blurred(self, edge_mm: float, step: int) -> list[np.ndarray]:
        """The maps as voxels of this size blur them, every `step`-th voxel."""
        return [gaussian_filter(part, 0.4 * edge_mm)[::step, ::step, ::step].copy() for part in self.maps]

    def _place(self, region: dict[str, Any], on_lattice: Tissues, near_fluid: np.ndarray) -> _Place:
        tissue = region["tissue"]
        reach = region["radius_mm"] + 6 * _SOFT_MM
        bounds = [
            np.searchsorted(axis, (centre - reach, centre + reach))
            for axis, centre in zip(self.lattice, (region["x"], region["y"], region["z"]), strict=True)
        ]
        box = tuple(slice(int(a), int(b)) for a, b in bounds)
        sphere = _sphere([axis[along] for axis, along in zip(self.lattice, box, strict=True)], region)
        of = Tissues(*(part[box] for part in on_lattice))
        if tissue == "lesion":  # a share of the white matter, not of other lesions
            weights, changed, amount = sphere, of.white, of.white
        elif tissue == "csf":  # grows where it is, at the cost of what is around it
            weights, changed, amount = sphere * near_fluid[box], of.of("brain"), of.of("csf")
        else:
            weights, changed, amount = sphere, of.of(tissue), of.of(tissue)
        unit = (sphere * amount).sum() / (sphere * weights * changed).sum()
        return _Place(box, weights * np.float32(unit), tissue)


@lru_cache(maxsize=1)
def _template() -> _Template:
    return _Template()


@lru_cache(maxsize=2)
def _blurred(edge_mm: float) -> tuple[list[np.ndarray], int]:
    """Brain, grey and white matter for voxels of this size, and the millimetres between the maps' own voxels."""
    step = max(1, int(edge_mm // 2))
    return _template().blurred(edge_mm, step), step


@lru_cache(maxsize=1)
def _effects() -> pd.DataFrame:
    return regions()


def _smooth(axes: list[np.ndarray], spacing_mm: float, random: np.random.Generator, n: int = 1) -> np.ndarray:
    """(n, X, Y, Z) random fields of unit variance, float32: Gaussians on nodes; draws do not depend on the grid."""
    weights = []
    for axis, centre in zip(axes, _CENTRE_MM, strict=True):
        nodes = centre + spacing_mm * np.arange(-(120 // spacing_mm) - 1, 120 // spacing_mm + 2)
        bumps = np.exp(-0.5 * ((axis[:, None] - nodes) / (0.7 * spacing_mm)) ** 2)
        weights.append((bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32))
    field = random.standard_normal((n, *(w.shape[1] for w in weights)), np.float32)
    for w in reversed(weights):  # the last axis but n's is replaced, and goes to the front
        field = np.moveaxis(np.tensordot(w, field, (1, 3)), 0, 1)
    return field


# ---- people and scans


def people(settings: CohortSettings) -> pd.DataFrame:
    """One row per person: `subject, age, sex, diagnosis`, and phenotypes if asked for; in random order."""
    diagnoses = [diagnosis for diagnosis, n in sorted(settings.people.items()) for _ in range(n)]
    order = generator(settings.seed, "people").permutation(len(diagnoses))
    name = re.sub(r"[^A-Za-z0-9]", "", settings.dataset)
    rows = []
    for number, which in enumerate(order, start=1):
        subject, diagnosis = f"{name}{number:03d}", diagnoses[which]
        random = generator(settings.seed, "person", subject)
        age = np.clip(random.normal(_AGE_YEARS[diagnosis], _AGE_SD_YEARS), *_AGE_RANGE)
        rows.append([subject, round(float(age), 1), "F" if random.random() < _WOMEN[diagnosis] else "M", diagnosis])
    table = pd.DataFrame(rows, columns=["subject", "age", "sex", "diagnosis"])
    if not settings.phenotypes:
        return table
    return table.join(pd.DataFrame([_phenotypes(subject, settings) for subject in table["subject"]]))


def _phenotypes(subject: str, settings: CohortSettings) -> dict[str, str]:
    """A person's household, income, fluid intelligence and smoking, as texts; some are missing.

    Income goes with fluid intelligence (r = 0.4), and with the size of the household a little. Names and ranges are
    those of UK Biobank's fields 709, 738, 20016 and 20116.
    """
    random = generator(settings.seed, "phenotypes", subject)
    household = 1 + int(random.poisson(1.1))
    able, luck = random.standard_normal(2)
    rank = 0.4 * able + 0.2 * (household > 1) + 0.9 * luck
    income = _INCOME[int(np.searchsorted([-0.8, -0.05, 0.65, 1.6], rank))]
    fluid = int(np.clip(round(_FLUID_MEAN + _FLUID_SD * able), 0, 13))
    smoking = str(random.choice([*_SMOKING], p=_SMOKE))
    found = {"household": str(household), "income": income, "fluid": str(fluid), "smoking": smoking}
    return {name: value if random.random() >= _UNKNOWN else "" for name, value in found.items()}


def plan(settings: CohortSettings, n_validation: int, n_test: int = 0, split_seed: int = 0) -> pd.DataFrame:
    """The manifest of a cohort, with `age, sex, diagnosis`; people are held out in proportion to their diagnoses.

    Where there are more scans than people, everyone has one and the others belong to people drawn at random, as further
    sessions; where there are fewer, they are of people drawn at random.
    """
    return assign_splits(_scans(settings), "subject", n_validation, split_seed, "diagnosis", n_test)


def _scans(settings: CohortSettings) -> pd.DataFrame:
    """The manifest without splits."""
    everyone = people(settings)
    own = [*everyone.columns[1:]]
    several = any(n > settings.people[d] for of in settings.scans.values() for d, n in of.items())
    rows = []
    for suffix, of_suffix in settings.scans.items():
        for diagnosis, n in of_suffix.items():
            group = everyone[everyone["diagnosis"] == diagnosis]
            random = generator(settings.seed, "scans", suffix, diagnosis)
            counts = (random.permutation(len(group)) < n).astype(int)
            if n > len(group):
                counts += np.bincount(random.integers(len(group), size=n - len(group)), minlength=len(group))
            for person, count in zip(group.to_dict("records"), counts, strict=True):
                for session in range(1, count + 1):
                    of_session = (f"sub-{person['subject']}", *((f"ses-{session}",) if several else ()))
                    stem = f"{'/'.join(of_session)}/anat/{'_'.join(of_session)}"
                    rows.append(
                        [settings.dataset, person["subject"], str(session) if several else "", suffix, "1",
                         f"{stem}_{suffix}.nii.gz", "", f"{stem}_mod-{suffix}_desc-brain_mask.nii.gz",
                         "", 1, "", "", "", *(person[column] for column in own)]
                    )  # fmt: skip
    table = pd.DataFrame(rows, columns=[*COLUMNS, *own])
    return table.sort_values(["task", "subject", "session"], ignore_index=True)


def manifest_of(profile: Profile) -> pd.DataFrame:
    """The profile's manifest, read; one that is made of the settings is written first if there is none."""
    if profile.makes_manifest and not profile.manifest_path.is_file():
        data, simulation = profile.data, profile.simulation
        if profile.cohort is not None:
            table = plan(profile.cohort, data.n_validation, data.n_test, data.split_seed)
        else:
            assert simulation is not None
            assert simulation.subjects is not None
            asked = simulation.subjects
            tasks = asked.tasks or list(TASKS)
            table = plan_runs(asked.train, asked.validation, asked.tr_s, tuple(asked.runs), tasks, asked.first)
            if simulation.patients is not None:
                table = clinic.plan(simulation, data.split_seed)
        write_manifest(table, profile.manifest_path)
    return read_manifest(profile.manifest_path, profile.data.split_unit)


# ---- a brain


def _degrees(person: pd.Series, settings: CohortSettings) -> dict[str, float]:
    """How much of each effect a person has."""
    random = generator(settings.seed, "patterns", person["subject"])
    own = {d: (person["diagnosis"] == d) + _PATTERN_SD * random.standard_normal() for d in _DISEASES}
    own |= {"age": (float(person["age"]) - 65) / 10, "sex": 0.5 if person["sex"] == "M" else -0.5}
    if not settings.phenotypes:
        return own | {"fluid": 0.0, "smoking": 0.0}
    fluid = (float(person["fluid"]) - _FLUID_MEAN) / _FLUID_SD if person["fluid"] else 0.0
    return own | {"fluid": fluid, "smoking": _SMOKING.get(person["smoking"], 0.0)}


def _planted(person: pd.Series, settings: CohortSettings) -> dict[str, float]:
    """Region → share by which the person's effects change it."""
    table, degrees = _effects(), _degrees(person, settings)
    return dict((table["change"] * table["effect"].map(degrees)).groupby(table["region"]).sum())


def _losses(template: _Template, person: pd.Series, settings: CohortSettings) -> np.ndarray:
    """(3, X, Y, Z) on the lattice: shares of grey and white matter that are lost, and of white matter with lesions."""
    random = generator(settings.seed, "tissues", person["subject"])
    ventricles, cortex, lesions = (_VENTRICLE_SD, _CORTEX_SD, _LESION_SD) * random.standard_normal(3)
    loss = np.zeros((3, *map(len, template.lattice)), np.float32)
    loss[0] = cortex + _GREY_SD * _smooth(template.lattice, 16, random)[0]
    for region, change in _planted(person, settings).items():
        if region not in template.places:
            continue
        box, weights, tissue = template.places[region]
        if tissue == "lesion":
            loss[2][box] += np.float32(max(0, _LESIONS + lesions + change)) * weights
            continue
        lost = np.float32(ventricles + change if tissue == "csf" else -change) * weights
        loss[0][box] += lost
        if tissue != "grey":
            loss[1][box] += lost
    loss[2] *= np.exp(_smooth(template.lattice, 8, random)[0] - 0.5)  # patches
    return loss


def _came_from(axes: list[np.ndarray], person: pd.Series, settings: CohortSettings) -> np.ndarray:
    """(3, X, Y, Z) millimetres in the template from which a scan's voxels come."""
    subject, session = person["subject"], person["session"]
    random = generator(settings.seed, "shape", subject)
    length = 1 + np.clip(_planted(person, settings)["head"] + _HEAD_SD * random.standard_normal(), -0.05, 0.05)
    moved = sum(sd * _smooth(axes, spacing, random, 3) for spacing, sd in _DEFORMATION_MM)
    random = generator(settings.seed, "session", subject, session)
    moved += _SESSION_MM * _smooth(axes, 20, random, 3)
    shift = random.normal(0, _SHIFT_MM, 3)
    turn = Rotation.from_rotvec(random.normal(0, _TILT_DEGREES, 3), degrees=True).as_matrix() / length
    here = [axis - centre - s for axis, centre, s in zip(axes, _CENTRE_MM, shift, strict=True)]
    for k in range(3):
        moved[k] += _CENTRE_MM[k] + (
            turn[k, 0] * here[0][:, None, None] + turn[k, 1] * here[1][:, None] + turn[k, 2] * here[2]
        )
    return np.asarray(moved, np.float32)


def tissues(person: pd.Series, settings: CohortSettings, shape: tuple[int, int, int]) -> Tissues:
    """The true tissues of a person in a session, on a grid.

    Parameters
    ----------
    person : with `subject, session, age, sex, diagnosis`, such as a row of the manifest
    """
    affine = grid(shape)
    template, (maps, step) = _template(), _blurred(float(affine[0, 0]))
    places = _came_from(_axes(shape, affine), person, settings) - template.origin[:, None, None, None]
    brain, grey, white = (map_coordinates(part, places / step, order=1) for part in maps)
    losses = _losses(template, person, settings)
    grey_lost, white_lost, lesion = (map_coordinates(part, places / _LATTICE_MM, order=1) for part in losses)
    white = np.clip(white * (1 - white_lost), 0, brain)
    grey = np.clip(grey * (1 - grey_lost), 0, brain - white)
    lesion = white * np.clip(lesion, 0, 1)
    return Tissues(brain, grey, white - lesion, lesion)


# ---- a scan


def simulate_scan(row: pd.Series, settings: CohortSettings) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """One scan of the manifest, int16, and its brain mask."""
    suffix = row["task"]
    shape = settings.shape_of(suffix)
    affine = grid(shape)
    brain = tissues(row, settings, shape)
    axes = _axes(shape, affine)
    scanner = generator(settings.scanner, "scanner", suffix)
    contrast = np.array(_CONTRAST[suffix]) * scanner.normal(1, 0.05, 4)
    gamma, strength, noise = scanner.uniform(0.9, 1.15), scanner.uniform(0.05, 0.15), scanner.uniform(0.015, 0.035)
    scale = 10 ** scanner.uniform(2.5, 3.2)
    bias = strength * _smooth(axes, 80, scanner)[0]
    random = generator(settings.seed, "scan", suffix, row["subject"], row["session"])
    bias += 0.3 * strength * _smooth(axes, 80, random)[0]
    mask = brain.brain > random.uniform(0.4, 0.55)
    signal = sum(c * part for c, part in zip(contrast, (brain.of("csf"), *brain[1:]), strict=True))
    signal = np.clip(signal, 0, None) ** gamma * np.exp(bias)
    real, imaginary = noise * random.standard_normal((2, *shape), np.float32)
    values = scale * np.exp(random.normal(0, 0.1)) * np.hypot(signal + real, imaginary)
    image = nib.Nifti1Image(np.clip(np.rint(values), 0, 32767).astype(np.int16), affine)
    own = nib.Nifti1Image(mask.astype(np.uint8), affine)
    for made in (image, own):
        made.header.set_xyzt_units("mm")
    return image, own


def simulate_cohort(manifest: pd.DataFrame, root: str | Path, settings: CohortSettings, jobs: int | None) -> None:
    """Simulate the scans of a manifest; those that exist are kept, so an interrupted simulation goes on.

    Beside the scans, `participants.tsv` lists all people of the cohort, `planted/` holds the true map of every effect
    (`planted_path`), and `simulation.json` the settings.

    Raises
    ------
    ValueError
        If the folder holds a cohort of other settings, or the manifest has other scans or people than the settings.
    """
    columns = ["subject", "session", "task", "image", "mask", *people(settings).columns[1:]]
    if missing := [column for column in columns if column not in manifest]:
        raise ValueError(
            f"the manifest of a simulated cohort has no column {', '.join(missing)}; delete it: it is made"
        )
    known = {tuple(map(str, row)) for row in _scans(settings)[columns].to_numpy()}
    others = [str(row[3]) for row in manifest[columns].to_numpy() if tuple(map(str, row)) not in known]
    if others:
        raise ValueError(
            f"{len(others)} scan(s) of the manifest do not belong to the cohort that the settings describe, e.g. "
            f"{', '.join(others[:3])}; delete the manifest, and it is made from the settings"
        )
    fill(manifest, Path(root), settings, _begin, _simulate_and_write, jobs, "simulated scans")


def _simulate_and_write(row: pd.Series, root: Path, settings: CohortSettings) -> None:
    with threadpool_limits(1):
        image, mask = simulate_scan(row, settings)
        (root / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        nib.save(mask, root / row["mask"])
        write_whole(root / row["image"], lambda p: nib.save(image, p))


def planted_path(root: Path, suffix: str, effect: str) -> Path:
    """Where a cohort keeps the true map of an effect (AD, PD, CVD, age, sex), on the grid of a suffix's scans."""
    return root / "planted" / f"{suffix}_{effect}.nii.gz"


def _begin(root: Path, settings: CohortSettings) -> None:
    """Write what belongs to the cohort as a whole."""
    table = people(settings)
    table.insert(0, "participant_id", "sub-" + table.pop("subject"))
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    description = {
        "Name": settings.dataset, "BIDSVersion": "1.9.0", "DatasetType": "raw",
        "GeneratedBy": [{"Name": "deeplight-core", "Description": "simulated; nobody was scanned"}],
    }  # fmt: skip
    (root / "dataset_description.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    (root / "planted").mkdir(exist_ok=True)
    for suffix in settings.scans:
        affine, shape = grid(settings.shape_of(suffix)), settings.shape_of(suffix)
        for effect, rows in regions().groupby("effect"):
            if effect in ("fluid", "smoking") and not settings.phenotypes:
                continue
            total, in_places = np.zeros(shape, np.float32), rows[rows["tissue"] != "size"]
            records: Any = in_places.to_dict("records")
            for region in records:
                total += np.float32(region["d"]) * _sphere(_axes(shape, affine), region)
            nib.save(nib.Nifti1Image(total, affine), planted_path(root, suffix, str(effect)))
