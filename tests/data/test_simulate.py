import itertools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nilearn.image import resample_to_img
from scipy.stats import gamma

from deeplight_core.data.manifest import read_manifest
from deeplight_core.data.simulate import design, foci, grid, load_anatomy, plan, planted_maps, simulate, simulate_run
from deeplight_core.preparation import ScannerSettings, SimulatedSubjects, SimulationSettings
from deeplight_core.tasks import BATTERY, HCP_TR_S, TASKS

Dataset = tuple[pd.DataFrame, Path, SimulationSettings]

PROTOCOL = {  # task: EVs of its blocks, blocks of each EV, seconds of a block, seconds between blocks
    "WM": ([f"{n}bk_{c}" for n in (0, 2) for c in ("body", "faces", "places", "tools")], {1}, 27.5, [0, 15] * 3 + [0]),
    "GAMBLING": (["win", "loss"], {2}, 28, [15] * 3),
    "MOTOR": (["lf", "rf", "lh", "rh", "t"], {2}, 12, [3, 3, 18] * 3),
    "SOCIAL": (["mental", "rnd"], {2, 3}, 23, [15] * 4),
    "RELATIONAL": (["relation", "match"], {3}, 18, [0, 16] * 2 + [0]),
    "EMOTION": (["fear", "neut"], {3}, 21, [0] * 5),
}
EV_FILES = {  # as in an HCP folder, but for Sync.txt
    "WM": {
        "0bk_body", "0bk_faces", "0bk_places", "0bk_tools", "2bk_body", "2bk_faces", "2bk_places", "2bk_tools",
        "0bk_cor", "0bk_err", "0bk_nlr", "2bk_cor", "2bk_err", "2bk_nlr", "all_bk_cor", "all_bk_err",
    },
    "GAMBLING": {"win", "loss", "win_event", "loss_event", "neut_event"},
    "MOTOR": {"cue", "lf", "lh", "rf", "rh", "t"},
    "LANGUAGE": {
        "cue", "math", "story", "present_math", "present_story", "question_math", "question_story", "response_math",
        "response_story",
    },
    "SOCIAL": {"mental", "mental_resp", "other_resp", "rnd"},
    "RELATIONAL": {"error", "match", "relation"},
    "EMOTION": {"fear", "neut"},
}  # fmt: skip


def blocks(task: str, names: list[str], run: str = "LR", seed: int = 0) -> pd.DataFrame:
    evs = design(task, run, seed)
    table = pd.concat([evs[name].assign(name=name) for name in names])
    return table.sort_values("onset", ignore_index=True)


def gaps(table: pd.DataFrame) -> np.ndarray:
    return table["onset"].to_numpy()[1:] - (table["onset"] + table["duration"]).to_numpy()[:-1]


@pytest.mark.parametrize("run", ["LR", "RL"])
@pytest.mark.parametrize("task", PROTOCOL)
def test_design_has_hcps_block_structure(task: str, run: str) -> None:
    names, counts, length_s, between_s = PROTOCOL[task]
    table = blocks(task, names, run)
    np.testing.assert_allclose(table["duration"], length_s)
    np.testing.assert_allclose(gaps(table), between_s, atol=1e-9)
    assert set(table["name"].value_counts()) == counts
    assert set(table["name"]) == set(names)


def test_language_alternates_story_and_math_of_about_30_s() -> None:
    table = blocks("LANGUAGE", ["story", "math"])
    assert list(table["name"]) == ["story", "math"] * 4
    assert table["duration"].between(25, 31).all()
    np.testing.assert_allclose(gaps(table), 0, atol=1e-9)


def test_a_cue_of_3_s_precedes_every_movement() -> None:
    cue, moves = design("MOTOR", "LR", 0)["cue"], blocks("MOTOR", PROTOCOL["MOTOR"][0])
    np.testing.assert_allclose(cue["onset"] + cue["duration"], moves["onset"])
    assert set(cue["duration"]) == {3}


def test_gambling_blocks_are_eight_trials_mostly_of_one_outcome() -> None:
    trials = blocks("GAMBLING", ["win_event", "loss_event", "neut_event"])
    for block in blocks("GAMBLING", ["win", "loss"]).itertuples():
        mine = trials[trials["onset"].between(block.onset, block.onset + 28, inclusive="left")]
        np.testing.assert_allclose(mine["onset"], block.onset + 3.5 * np.arange(8))
        assert (mine["name"] == f"{block.name}_event").sum() >= 6
    assert len(trials) == 32


@pytest.mark.parametrize("task", TASKS)
def test_events_lie_within_the_run_and_have_hcps_names(task: str) -> None:
    for run, seed in itertools.product(("LR", "RL"), range(3)):
        evs = design(task, run, seed)
        assert set(evs) == EV_FILES[task]
        for table in evs.values():
            assert (table["onset"] >= 0).all()
            assert (table["onset"] + table["duration"] <= TASKS[task].n_frames * HCP_TR_S).all()


def test_design_depends_on_run_and_seed_only() -> None:
    names = PROTOCOL["WM"][0]
    pd.testing.assert_frame_equal(blocks("WM", names), blocks("WM", names))
    assert list(blocks("WM", names)["name"]) != list(blocks("WM", names, "RL")["name"])
    assert list(blocks("WM", names)["name"]) != list(blocks("WM", names, seed=1)["name"])
    with pytest.raises(ValueError, match="no design for task 'REST'; the simulated tasks are WM, GAMBLING"):
        design("REST", "LR", 0)


def test_grid_is_hcps_at_2_mm() -> None:
    shape, affine = grid(2)
    assert shape == (91, 109, 91)
    np.testing.assert_array_equal(affine, [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


@given(st.floats(2, 10))
def test_grid_covers_hcps_from_edge_to_edge(resolution_mm: float) -> None:
    shape, affine = grid(resolution_mm)
    first, last = nib.affines.apply_affine(affine, [np.full(3, -0.5), np.array(shape) - 0.5])
    np.testing.assert_allclose(first, [91, -127, -73])
    beyond = (last - [-91, 91, 109]) * [-1, 1, 1]
    assert (beyond >= -1e-4).all()
    assert (beyond < resolution_mm).all()


def test_foci_lie_in_the_brain_and_every_state_has_one_with_a_source() -> None:
    from nilearn.datasets import load_mni152_brain_mask

    table = foci()
    assert {(task, state) for task, spec in TASKS.items() for state in (*spec.states, "*")} == set(
        zip(table["task"], table["state"], strict=True)
    )
    assert table["source"].str.contains(r"\b(?:19|20)\d\d\b").all()
    assert table["weight"].between(0.1, 1.5).all()
    mask = load_mni152_brain_mask(resolution=2)
    voxels = nib.affines.apply_affine(np.linalg.inv(mask.affine), table[["x", "y", "z"]]).round().astype(int)
    assert np.asarray(mask.dataobj)[tuple(voxels.T)].all()


def test_left_and_right_are_where_they_belong() -> None:
    anatomy = load_anatomy(10.0)
    maps = planted_maps("MOTOR", anatomy, 0)
    right, left = (np.square(anatomy.xyz_mm - [x, -23, 56]).sum(axis=1).argmin() for x in (38, -38))
    lateral = {state: values[right] - values[left] for state, values in maps.items()}  # right is where x is positive
    assert lateral["left finger"] > 0.2
    assert lateral["right finger"] < -0.2


def test_gamblings_states_differ_least() -> None:
    anatomy = load_anatomy(10.0)
    distance = {}
    for task in TASKS:
        pairs = itertools.combinations(planted_maps(task, anatomy, 0).values(), 2)
        distance[task] = np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs])
    gambling = distance.pop("GAMBLING")
    assert gambling < 0.6 * min(distance.values())


def test_subjects_differ_around_the_common_map() -> None:
    anatomy = load_anatomy(10.0)
    common = planted_maps("WM", anatomy, 0)["face"]
    one, two = (planted_maps("WM", anatomy, 0, subject)["face"] for subject in ("sim001", "sim002"))
    assert not np.allclose(one, two)
    for own in (one, two):
        assert 0.7 < np.corrcoef(own, common)[0, 1] < 0.999


def test_tsnr_and_autocorrelation_are_realistic_at_8_mm() -> None:
    row = plan(1, 0)[lambda t: t["task"] == "EMOTION"].iloc[0]
    bold, mask, _ = simulate_run(row, SimulationSettings(resolution_mm=8, contrast=0))
    series = bold.get_fdata()[mask.get_fdata() > 0].T
    tsnr = np.median(series.mean(axis=0) / series.std(axis=0))
    assert 140 < tsnr < 220
    drift = np.polynomial.legendre.legvander(np.linspace(-1, 1, len(series)), 3)
    rest = series - drift @ np.linalg.lstsq(drift, series)[0]
    rest /= rest.std(axis=0)
    lags = [np.median((rest[lag:] * rest[:-lag]).mean(axis=0)) for lag in (1, 4, 16)]
    assert 0.3 < lags[0] < 0.8
    assert lags[0] > lags[1] > lags[2]


def hrf(times_s: np.ndarray) -> np.ndarray:
    return gamma.pdf(times_s, 6) - gamma.pdf(times_s, 16) / 6


def estimated_maps(bold: np.ndarray, task: str, tr_s: float, evs: dict[str, pd.DataFrame]) -> np.ndarray:
    """Least squares of (T, V) on the states' boxcars convolved with a double gamma, and a cubic drift; (states, V)."""
    per_s = 10
    regressors = []
    for names in TASKS[task].states.values():
        boxcar = np.zeros(int(len(bold) * tr_s + 50) * per_s)
        for onset, duration in pd.concat([evs[name] for name in names])[["onset", "duration"]].to_numpy():
            boxcar[round(onset * per_s) : round((onset + duration) * per_s)] = 1
        response = np.convolve(boxcar, hrf(np.arange(0, 32, 1 / per_s)) / per_s)
        regressors.append(response[(np.arange(len(bold)) * tr_s * per_s).round().astype(int)])
    matrix = np.column_stack([*regressors, np.vander(np.linspace(-1, 1, len(bold)), 4)])
    return np.linalg.lstsq(matrix, 100 * bold / bold.mean(axis=0))[0][: len(regressors)]


@pytest.mark.parametrize("task", ["WM", "MOTOR"])
def test_a_linear_model_recovers_the_planted_maps(task: str) -> None:
    row = plan(1, 0, 2.16)[lambda t: t["task"] == task].iloc[0]
    bold, mask, evs = simulate_run(row, SimulationSettings(resolution_mm=10, contrast=3))
    anatomy = load_anatomy(10.0)
    inside = mask.get_fdata().T > 0
    found = estimated_maps(bold.get_fdata().T[:, inside], task, 2.16, evs)
    planted = np.stack([*planted_maps(task, anatomy, 0, "sim001").values()])[:, inside[anatomy.mask.T]]
    n = len(planted)
    correlation = np.corrcoef(found, planted)[:n, n:]
    assert (np.diag(correlation) > 0.8).all()
    assert (correlation.argmax(axis=1) == np.arange(n)).all()
    assert 2 < np.polyfit(planted.ravel(), found.ravel(), 1)[0] < 4.5  # contrast times a subject's own gain


def test_contrast_scales_the_activation_and_nothing_else() -> None:
    row = plan(1, 0, 2.88)[lambda t: t["task"] == "EMOTION"].iloc[0]
    at = {c: simulate_run(row, SimulationSettings(resolution_mm=10, contrast=c))[0].get_fdata() for c in (0, 1, 3)}
    assert np.abs(at[1] - at[0]).max() > 10
    np.testing.assert_allclose(at[3] - at[0], 3 * (at[1] - at[0]), atol=0.02)  # float32 around 10,000


def contents(root: Path) -> dict[str, bytes]:
    """Path → bytes of every file, but for what a killed worker left half written."""
    files = (file for file in sorted(root.rglob("*")) if file.is_file() and not file.name.startswith("partial_"))
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_files_are_hcps_on_one_grid(simulated: Dataset) -> None:
    manifest, root, _ = simulated
    shape, affine = grid(10)
    for row in manifest.itertuples():
        bold, mask = nib.load(root / row.image), nib.load(root / row.mask)
        assert bold.shape == (*shape, row.n_volumes)
        assert mask.shape == shape
        np.testing.assert_allclose(bold.affine, affine)
        np.testing.assert_allclose(mask.affine, affine)
        np.testing.assert_allclose(bold.header.get_zooms(), [10, 10, 10, 2.88])
        assert bold.header.get_xyzt_units() == ("mm", "sec")
        np.testing.assert_array_equal(bold.get_fdata().any(axis=3), mask.get_fdata() > 0)
        assert {file.name for file in (root / row.events).iterdir()} == {f"{name}.txt" for name in EV_FILES[row.task]}
        first = next(name for names in TASKS[row.task].states.values() for name in names)
        assert np.loadtxt(root / row.events / f"{first}.txt", ndmin=2).shape[1] == 3
    assert not list(root.rglob("partial_*"))
    planted = {file.name for file in (root / "planted").iterdir()} - {"networks.nii.gz", "networks.tsv"}
    assert planted == {f"{t}_{s.replace(' ', '-')}.nii.gz" for t, spec in TASKS.items() for s in spec.states}


def test_networks_are_an_atlas(simulated: Dataset) -> None:
    _, root, _ = simulated
    anatomy = load_anatomy(10.0)
    image = nib.load(root / "planted/networks.nii.gz")
    np.testing.assert_allclose(image.affine, anatomy.affine)
    table = pd.read_csv(root / "planted/networks.tsv", sep="\t").set_index("name")["index"]
    numbers = image.get_fdata().T[anatomy.mask.T]
    for name in ("Visual", "Reward"):
        own = anatomy.networks[anatomy.network_names.index(name)]
        assert (numbers[own.argmax()]) == table[name]
        assert own[numbers == table[name]].min() > 0.2
    assert (numbers == 0).any()


def test_planted_maps_are_saved(simulated: Dataset) -> None:
    _, root, settings = simulated
    anatomy = load_anatomy(10.0)
    saved = nib.load(root / "planted/MOTOR_left-toe.nii.gz").get_fdata()
    expected = planted_maps("MOTOR", anatomy, settings.seed)["left toe"]
    np.testing.assert_allclose(saved.T[anatomy.mask.T], expected, rtol=1e-6)
    assert not saved[~anatomy.mask].any()


def test_bytes_depend_neither_on_workers_nor_on_interruptions(simulated: Dataset, tmp_path: Path) -> None:
    manifest, root, settings = simulated  # made by two workers
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    kept, cut_short, *missing = (tmp_path / path for path in manifest["image"])
    for image in missing:
        shutil.rmtree(image.parent)
    cut_short.rename(cut_short.with_name(f"partial_{cut_short.name}"))
    cut_short.with_name("brainmask_fs.2.nii.gz").write_bytes(b"cut short")
    before = kept.stat().st_mtime_ns
    simulate(manifest[::-1], tmp_path, settings, jobs=1)
    made = {name: content for name, content in contents(tmp_path).items() if "partial_" not in name}
    assert made == contents(root)
    assert kept.stat().st_mtime_ns == before


def test_another_seed_is_another_dataset() -> None:
    row = plan(1, 0, 2.88)[lambda t: t["task"] == "EMOTION"].iloc[0]
    one, same, other = (
        simulate_run(row, SimulationSettings(resolution_mm=10, seed=seed))[0].get_fdata() for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    inside = one[..., 0] > 0
    assert abs(np.corrcoef(np.diff(one[inside]).ravel(), np.diff(other[inside]).ravel())[0, 1]) < 0.5


@pytest.mark.parametrize("change", [{"contrast": 2}, {"seed": 9}, {"resolution_mm": 9}], ids=lambda c: next(iter(c)))
def test_a_folder_with_other_settings_is_refused(simulated: Dataset, change: dict[str, float]) -> None:
    manifest, root, settings = simulated
    with pytest.raises(ValueError, match=f"{root} holds a dataset simulated with .*choose another folder"):
        simulate(manifest, root, settings.model_copy(update=change))
    assert json.loads((root / "simulation.json").read_text()) == settings.model_dump(mode="json", exclude={"subjects"})


def test_a_task_without_design_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot simulate task\(s\) REST; the simulated tasks are WM"):
        simulate(plan(1, 0)[:1].assign(task="REST"), tmp_path, SimulationSettings())
    assert not list(tmp_path.iterdir())


def test_plan_is_hcps_at_its_tr() -> None:
    table = plan(2, 1)
    assert len(table) == 3 * 7 * 2
    assert dict(zip(table["task"], table["n_volumes"], strict=True)) == {t: spec.n_frames for t, spec in TASKS.items()}
    assert table.groupby("subject")["split"].unique().map(list).to_dict() == {
        "sim001": ["train"], "sim002": ["train"], "sim003": ["validation"],
    }  # fmt: skip
    assert table["image"][1] == "sim001/MNINonLinear/Results/tfMRI_WM_RL/tfMRI_WM_RL.nii.gz"


def test_nobody_of_the_demo_is_among_the_people_its_settings_were_chosen_on() -> None:
    root = Path(__file__).parents[2]
    shown, chosen_on = (read_manifest(root / name) for name in ("data_manifest.csv", "tuning_manifest.csv"))
    assert not {*shown["subject"]} & {*chosen_on["subject"]}
    assert not {*shown["image"]} & {*chosen_on["image"]}
    kept = ["task", "run", "tr_s", "n_volumes", "split"]  # all else is the same
    pd.testing.assert_frame_equal(shown[kept], chosen_on[kept])


# ---- runs as a scanner gives them, and a battery of tasks


def as_scanned(number: int = 1, **scanner: float) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    own = {"pose_mm": 0, "pose_deg": 0, "motion_mm": 0, "drift": 1} | scanner
    settings = SimulationSettings(resolution_mm=10, contrast=2, scanner=ScannerSettings.model_validate(own))
    row = plan(3, 1, 2.16, ("LR",), ["EMOTION"]).iloc[number - 1]
    bold, mask, _ = simulate_run(row, settings)
    return bold, mask


def middle_mm(mask: nib.Nifti1Image) -> np.ndarray:
    inside = np.argwhere(mask.get_fdata() > 0)
    return nib.affines.apply_affine(mask.affine, inside).mean(axis=0)


def test_a_head_has_its_own_grid_and_lies_where_its_header_says() -> None:
    row = plan(3, 1, 2.16, ("LR",), ["EMOTION"]).iloc[0]
    still, _, _ = simulate_run(row, SimulationSettings(resolution_mm=10, contrast=2))
    grids = [as_scanned(number) for number in (1, 2)]
    assert not np.allclose(grids[0][0].affine, grids[1][0].affine)
    bold, mask = grids[0]
    assert bold.shape[:3] == mask.shape
    assert bold.header.get_zooms()[3] == pytest.approx(2.16)
    there = resample_to_img(bold.slicer[..., 5], still.slicer[..., 5], copy_header=True, force_resample=True)
    inside = still.get_fdata()[..., 5] > 0
    assert np.corrcoef(there.get_fdata()[inside], still.get_fdata()[..., 5][inside])[0, 1] > 0.9


def test_poses_movements_and_drift_are_those_asked_for() -> None:
    quiet, lying = as_scanned()
    _, moved = as_scanned(pose_mm=20)
    assert 5 < np.linalg.norm(middle_mm(moved) - middle_mm(lying)) < 100
    _, turned = as_scanned(pose_deg=10)
    shape, affine = grid(10)
    centre = nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)  # which it turns about
    away = [np.linalg.norm(middle_mm(mask) - centre) for mask in (turned, lying, moved)]
    assert away[0] == pytest.approx(away[1], abs=2)
    assert abs(away[2] - away[1]) > 2
    assert (turned.get_fdata() != lying.get_fdata()).mean() > 0.03
    restless, _ = as_scanned(motion_mm=2)
    drifting, _ = as_scanned(drift=10)
    inside = lying.get_fdata() > 0
    sd = [image.get_fdata()[inside].std(axis=1).mean() for image in (quiet, restless, drifting)]
    assert sd[1] > 2 * sd[0]
    assert sd[2] > 2 * sd[0]


def test_the_battery_has_a_block_of_every_task_and_foci_of_their_own() -> None:
    blocks = pd.concat(design("BATTERY", "LR", 0)).sort_values("onset")
    assert len(blocks) == 13
    assert (blocks["duration"] == 30).all()
    assert np.diff(blocks["onset"]).tolist() == [35.0] * 12
    row = plan(1, 1, 1.0, ("LR",), ["BATTERY"], first=301).iloc[0]
    assert (row["subject"], row["n_volumes"]) == ("sim301", 455)
    maps = planted_maps("BATTERY", load_anatomy(10), 0)
    assert set(maps) == set(BATTERY.states)
    peaks = {state: int(values.argmax()) for state, values in maps.items()}
    assert len(set(peaks.values())) > 8  # the shared visual focus may be the largest of some
    for a, b in itertools.combinations(maps.values(), 2):
        assert np.corrcoef(a, b)[0, 1] < 0.95


def test_planted_maps_are_those_of_the_tasks_asked_for(tmp_path: Path) -> None:
    subjects = SimulatedSubjects(train=1, validation=1, tasks=["BATTERY"])
    simulate(
        plan(1, 1, 1.0, ("LR",), ["BATTERY"])[:0], tmp_path, SimulationSettings(resolution_mm=10, subjects=subjects)
    )
    assert len(list((tmp_path / "planted").glob("BATTERY_*"))) == 13
    assert not list((tmp_path / "planted").glob("WM_*"))


def test_settings_that_an_older_dataset_lacks_have_their_defaults(simulated: Dataset, tmp_path: Path) -> None:
    manifest, root, settings = simulated
    record = json.loads((root / "simulation.json").read_text())
    shutil.copytree(root, tmp_path / "old")
    (tmp_path / "old/simulation.json").write_text(json.dumps({k: v for k, v in record.items() if k != "scanner"}))
    simulate(manifest, tmp_path / "old", settings)
    with pytest.raises(ValueError, match="holds a dataset simulated with"):
        simulate(manifest, tmp_path / "old", settings.model_copy(update={"scanner": ScannerSettings()}))
