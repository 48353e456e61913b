import json
import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from nilearn.datasets import load_mni152_brain_mask
from typer.testing import CliRunner

from deeplight_core.cli import app
from deeplight_core.config import Profile
from deeplight_core.data import cohorts, simulate
from deeplight_core.data.cohorts import (
    grid,
    manifest_of,
    people,
    plan,
    planted_path,
    regions,
    simulate_cohort,
    simulate_scan,
    tissues,
)
from deeplight_core.data.manifest import COLUMNS, is_structural, read_manifest
from deeplight_core.experiment import prepare_data
from deeplight_core.preparation import CohortSettings

SHAPE, OTHER_SHAPE = (18, 22, 20), (18, 23, 21)  # voxels of 9 mm
SETTINGS = CohortSettings(
    dataset="both-like", people={"PD": 3, "HC": 2}, shape={"T1w": SHAPE, "T2w": OTHER_SHAPE}, seed=3, scanner=1,
    scans={"T1w": {"PD": 5, "HC": 2}, "T2w": {"PD": 1, "HC": 2}},
)  # fmt: skip
ADNI = CohortSettings(
    dataset="adni-like", people={"AD": 167, "CN": 142}, scans={"T1w": {"AD": 475, "CN": 494}}, shape=(108, 128, 108)
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """Manifest and root of a cohort, to be read only."""
    table, root = plan(SETTINGS, 1), tmp_path_factory.mktemp("cohort")
    simulate_cohort(table, root, SETTINGS, jobs=1)
    return table, root


def profile(root: Path, **changes: object) -> Profile:
    data = {
        "root": root, "manifest": root / "manifest.csv", "layout": "bids", "label": "diagnosis", "n_validation": 1,
        "source": {}, "target": {"T1w": ["PD", "HC"]},
    }  # fmt: skip
    return Profile.model_validate({"name": "mine", "data": data | changes, "cohort": SETTINGS})


def test_the_reports_numbers_of_scans_and_people() -> None:
    table = plan(ADNI, 31)
    assert table["diagnosis"].value_counts().to_dict() == {"CN": 494, "AD": 475}
    by_person = table.groupby("subject")
    assert by_person["diagnosis"].first().value_counts().to_dict() == {"AD": 167, "CN": 142}
    assert by_person["split"].nunique().max() == 1
    held_out = table[table["split"] == "validation"].drop_duplicates("subject")["diagnosis"].value_counts()
    assert held_out.sum() == 31
    assert abs(held_out["AD"] - 31 * 167 / 309) < 1
    sessions = by_person["session"].apply(lambda s: sorted(map(int, s)))
    assert all(s == list(range(1, len(s) + 1)) for s in sessions)
    ages = by_person["age"].first().groupby(by_person["diagnosis"].first()).mean()
    assert abs(ages["AD"] - ages["CN"]) < 2  # age must not give the diagnosis away: three standard errors


def test_fewer_scans_than_people_are_of_some_of_them() -> None:
    table = plan(SETTINGS, 1)
    of = {suffix: set(rows["subject"]) for suffix, rows in table.groupby("task")}
    assert of["T2w"] < of["T1w"] == set(people(SETTINGS)["subject"])
    assert not set(table["session"]) & {""}  # sessions are named for all as soon as one person has two
    assert table[COLUMNS[-1]].eq("").all()


def test_first_people_are_of_all_diagnoses() -> None:
    assert people(ADNI)["diagnosis"].head(20).nunique() == 2
    assert people(ADNI)["subject"].is_monotonic_increasing


def test_the_order_of_the_settings_is_no_part_of_them() -> None:
    turned = SETTINGS.model_copy(update={"people": dict(reversed(SETTINGS.people.items()))})
    pd.testing.assert_frame_equal(plan(turned, 1), plan(SETTINGS, 1))


@pytest.fixture(scope="module")
def brain_mm() -> np.ndarray:
    """(N, 3) places in the template's brain."""
    brain = load_mni152_brain_mask(resolution=1)
    return np.asarray(nib.affines.apply_affine(brain.affine, np.argwhere(brain.get_fdata() > 0)))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate without worker processes, which take seconds to start."""
    monkeypatch.setattr(simulate, "in_processes", lambda work, items, *_: [work(item) for item in items])


@pytest.mark.parametrize("shape", [(108, 128, 108), (105, 127, 105), (105, 126, 105), (36, 43, 36), (30, 51, 47)])
def test_grids_cover_the_templates_brain_with_cubes(shape: tuple[int, int, int], brain_mm: np.ndarray) -> None:
    affine = grid(shape)
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), brain_mm)
    assert (voxels > -0.5).all()
    assert (voxels < np.array(shape) - 0.5).all()
    assert len(set(nib.affines.voxel_sizes(affine).round(6))) == 1


def test_a_cohort_is_read_like_a_real_folder(cohort: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    planned, root = cohort
    for suffix in ("T1w", "T2w"):
        done = CliRunner().invoke(
            app, ["manifest", "--bids", str(root), "--anat", suffix, "--subjects", str(root / "participants.tsv"),
                  "--label", "age", "--label", "sex", "--label", "diagnosis", "-o", str(tmp_path / "found.csv")]
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        found = read_manifest(tmp_path / "found.csv")
        assert is_structural(found).all()
        found, mine = (t.drop(columns=["split", "tr_s"]) for t in (found, planned[planned["task"] == suffix]))
        pd.testing.assert_frame_equal(
            found.astype(str).sort_values("image", ignore_index=True),
            mine.astype(str).sort_values("image", ignore_index=True),
        )
    assert len(pd.read_csv(root / "participants.tsv", sep="\t")) == 5
    assert json.loads((root / "dataset_description.json").read_text())["Name"] == "both-like"


def test_images_look_like_a_scanners(cohort: tuple[pd.DataFrame, Path]) -> None:
    planned, root = cohort
    for _, row in planned.iterrows():
        image, mask = nib.load(root / row["image"]), nib.load(root / row["mask"])
        shape = SETTINGS.shape_of(row["task"])
        assert image.get_data_dtype() == np.int16
        assert image.shape == mask.shape == shape
        assert np.array_equal(image.affine, mask.affine)
        values, inside = np.asarray(image.dataobj).astype(float), np.asarray(mask.dataobj) > 0
        assert 1.2e6 < inside.sum() * abs(np.linalg.det(image.affine)) < 2.4e6  # mm³; the template's has 1.88e6
        assert values[inside].mean() > 8 * values[~inside].mean()
        brain = tissues(row, SETTINGS, shape)
        grey, white = (np.average(values, weights=part**4) for part in (brain.grey, brain.white))
        assert (grey < white) == (row["task"] == "T1w")


def test_scans_of_one_person_are_alike(cohort: tuple[pd.DataFrame, Path]) -> None:
    planned, _ = cohort
    t1 = planned[planned["task"] == "T1w"].sort_values(["subject", "session"])
    greys = np.stack([tissues(row, SETTINGS, SHAPE).grey.ravel() for _, row in t1.iterrows()])
    alike = np.corrcoef(greys)
    same = t1["subject"].to_numpy()[:, None] == t1["subject"].to_numpy()
    assert same.sum() > len(t1)
    others = ~np.eye(len(t1), dtype=bool)
    assert alike[same & others].min() > alike[~same].max()
    assert alike[same & others].max() < 1


def test_the_same_at_any_order_and_alone(cohort: tuple[pd.DataFrame, Path]) -> None:
    planned, root = cohort
    row = planned.iloc[-1]
    image, mask = simulate_scan(row, SETTINGS)
    assert np.array_equal(image.dataobj, nib.load(root / row["image"]).dataobj)
    assert np.array_equal(mask.dataobj, nib.load(root / row["mask"]).dataobj)
    for change in ({"seed": 4}, {"scanner": 2}):
        other, _ = simulate_scan(row, SETTINGS.model_copy(update=change))
        assert not np.array_equal(other.dataobj, image.dataobj)


def test_another_scanner_sees_the_same_brain(cohort: tuple[pd.DataFrame, Path]) -> None:
    row = cohort[0].iloc[0]
    other = SETTINGS.model_copy(update={"scanner": 9})
    for one, two in zip(tissues(row, SETTINGS, SHAPE), tissues(row, other, SHAPE), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.usefixtures("in_this_process")
def test_an_interrupted_cohort_goes_on(cohort: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    planned, root = cohort
    simulate_cohort(planned.head(2), tmp_path, SETTINGS, jobs=1)
    before = (tmp_path / planned["image"][0]).stat().st_mtime_ns
    simulate_cohort(planned.head(3), tmp_path, SETTINGS, jobs=1)
    assert (tmp_path / planned["image"][0]).stat().st_mtime_ns == before
    assert len([*tmp_path.rglob("*_T?w.nii.gz")]) == 3
    for image in planned["image"].head(3):
        assert np.array_equal(nib.load(tmp_path / image).dataobj, nib.load(root / image).dataobj)


def test_other_settings_and_other_manifests_are_refused(cohort: tuple[pd.DataFrame, Path]) -> None:
    planned, root = cohort
    with pytest.raises(ValueError, match=r"holds a dataset simulated with .*choose another folder"):
        simulate_cohort(planned, root, SETTINGS.model_copy(update={"scanner": 5}), jobs=1)
    ill = planned.assign(diagnosis="HC")
    with pytest.raises(ValueError, match=r"scan\(s\) of the manifest do not belong .*both-?like.* delete the manifest"):
        simulate_cohort(ill, root, SETTINGS, jobs=1)
    with pytest.raises(ValueError, match="no column diagnosis"):
        simulate_cohort(planned.drop(columns="diagnosis"), root, SETTINGS, jobs=1)


def test_the_manifest_of_a_cohort_is_made_once(tmp_path: Path) -> None:
    mine = profile(tmp_path)
    made = manifest_of(mine)
    pd.testing.assert_series_equal(made["split"], plan(SETTINGS, 1)["split"])
    swapped = made.assign(split=made["split"].map({"train": "validation", "validation": "train"}))
    swapped.to_csv(mine.manifest_path, index=False)
    assert manifest_of(mine)["split"].tolist() == swapped["split"].tolist()  # the user's own
    with pytest.raises(ValueError, match="there is no manifest"):
        manifest_of(
            mine.model_copy(update={"cohort": None, "data": mine.data.model_copy(update={"manifest": Path("x")})})
        )


@pytest.mark.usefixtures("in_this_process")
def test_a_profile_with_a_cohort_is_prepared(
    cohort: tuple[pd.DataFrame, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path(shutil.copytree(cohort[1], tmp_path / "data"))
    first = next(root.rglob("*_T1w.nii.gz"))
    first.unlink()  # an interrupted simulation
    store = prepare_data(profile(root), jobs=1)
    t1 = cohort[0].query("task == 'T1w'")
    assert first.is_file()
    assert store.index["state"].value_counts().to_dict() == t1["diagnosis"].value_counts().to_dict()
    assert store.index["age"].astype(float).tolist() == t1["age"].tolist()


@pytest.mark.usefixtures("in_this_process")
def test_the_command_fills_a_profiles_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = profile(tmp_path / "data").model_dump(mode="json")
    content["cohort"] |= {"people": {"AD": 1, "CN": 1}, "scans": {"T2w": {"CN": 1, "AD": 1}}}
    content["data"]["target"] = {"T2w": ["AD", "CN"]}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["cohort", "mine.yaml", "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert "2 scans of 2 simulated people" in done.output
    assert len([*(tmp_path / "data").rglob("*_T2w.nii.gz")]) == 2
    Path("none.yaml").write_text("name: none")
    refused = CliRunner().invoke(app, ["cohort", "none.yaml"])
    assert "profile none has no cohort" in str(refused.exception)


def test_true_maps_name_the_places(cohort: tuple[pd.DataFrame, Path]) -> None:
    table = regions()
    for suffix, shape in (("T1w", SHAPE), ("T2w", OTHER_SHAPE)):
        for effect, rows in table.groupby("effect"):
            if effect in ("fluid", "smoking"):  # these people have none
                assert not planted_path(cohort[1], suffix, str(effect)).exists()
                continue
            image = nib.load(planted_path(cohort[1], suffix, str(effect)))
            assert image.shape == shape
            values = image.get_fdata()
            rows = rows[rows["tissue"] != "size"]
            for row in rows.itertuples():
                x, y, z = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), (row.x, row.y, row.z))).astype(
                    int
                )
                assert values[x, y, z] * row.d > 0 or effect == "age"  # age's places overlap those of all grey matter


def test_regions_are_well_described() -> None:
    table = regions()
    assert set(table["effect"]) == set(cohorts._EFFECTS)
    assert set(table["tissue"]) == {"grey", "brain", "csf", "lesion", "size"}
    assert table["source"].str.contains(r"\b(?:19|20)\d\d\b").all()
    assert not table.duplicated(["effect", "region"]).any()
    places = table.groupby("region")[["x", "y", "z", "radius_mm", "tissue"]].nunique()
    assert (places == 1).all(axis=None)  # a place is the same in every effect
    sides = table[table["region"].str.startswith(("left", "right"))]
    assert ((sides["x"] < 0) == sides["region"].str.startswith("left")).all()


def test_people_have_phenotypes_if_asked_for() -> None:
    """Rates, the correlation of income and fluid intelligence, and missing values, in 3,000 people."""
    settings = CohortSettings(people={"HC": 3000}, scans={"T1w": {"HC": 3000}}, phenotypes=True)
    found = people(settings)
    without = people(settings.model_copy(update={"phenotypes": False}))
    pd.testing.assert_frame_equal(found[without.columns], without)  # nothing else changes
    known = found.replace("", np.nan)
    columns = ["household", "income", "fluid", "smoking"]
    assert known[columns].isna().mean().between(0.02, 0.09).all()
    fluid = known["fluid"].astype(float)
    assert fluid.dropna().between(0, 13).all()
    assert (fluid.mean(), fluid.std()) == pytest.approx((6.6, 2.1), abs=0.3)
    income = known["income"].map({band: i for i, band in enumerate(cohorts._INCOME)})
    assert 0.25 < income.corr(fluid) < 0.5
    assert income.value_counts(normalize=True).between(0.03, 0.4).all()
    assert (known["smoking"] == "current").mean() == pytest.approx(0.95 * 0.08, abs=0.015)
    assert known["household"].astype(float).mean() == pytest.approx(2.1, abs=0.2)
    assert list(plan(settings, 20).columns[-7:]) == ["age", "sex", "diagnosis", *columns]


def spheres(places: list[dict[Hashable, Any]], shape: tuple[int, int, int]) -> np.ndarray:
    """(places, voxels): what belongs to a region's sphere, soft at the border; of the head, everything."""
    xyz = nib.affines.apply_affine(grid(shape), np.indices(shape).reshape(3, -1).T)
    distance = [np.linalg.norm(xyz - [place["x"], place["y"], place["z"]], axis=1) for place in places]
    radius = np.array([place["radius_mm"] for place in places])[:, None]
    return np.asarray(1 / (1 + np.exp((np.stack(distance) - radius) / 1.5)), np.float32)


cohorts_planted = cohorts._planted


def same_head(person: pd.Series, settings: CohortSettings) -> dict[str, float]:
    """What is planted in a person whose head is of their own sex's size."""
    own = cohorts_planted(person.replace(person["sex"], person["own_sex"]), settings)
    return cohorts_planted(person, settings) | {"head": own["head"]}


@pytest.fixture(scope="module")
def contents() -> dict[str, dict[str, np.ndarray]]:
    """What is changed → place → its content in 24 people, the same people each time; voxels of 6 mm."""
    n, shape = 24, (27, 32, 27)
    settings = CohortSettings(people={"CN": n}, scans={"T1w": {"CN": n}}, phenotypes=True, seed=11)
    places = regions().query("tissue != 'size'").drop_duplicates("region").to_dict("records")
    inside = spheres(places, shape)
    everyone = people(settings).assign(session="", fluid="6.6", smoking="never")
    everyone["own_sex"] = everyone["sex"]
    changes: dict[str, dict[str, Any]] = {
        "nothing": {}, **{d: {"diagnosis": d} for d in ("AD", "PD", "CVD")}, "age": {"age": everyone["age"] + 10},
        "men": {"sex": "M"}, "women": {"sex": "F"}, "fluid": {"fluid": "8.7"}, "smoking": {"smoking": "current"},
    }  # fmt: skip
    found = {}
    for change, columns in changes.items():
        with pytest.MonkeyPatch.context() as patch:
            if "sex" in columns:
                patch.setattr(cohorts, "_planted", same_head)
            brains = [tissues(person, settings, shape) for _, person in everyone.assign(**columns).iterrows()]
        maps = {
            tissue: np.stack([b.of(tissue).ravel() for b in brains]) for tissue in ("grey", "brain", "csf", "lesion")
        }
        found[change] = {p["region"]: maps[p["tissue"]] @ w for p, w in zip(places, inside, strict=True)}
    return found


@pytest.mark.parametrize("effect", cohorts._EFFECTS)
def test_effects_have_the_stated_size(effect: str, contents: dict[str, dict[str, np.ndarray]]) -> None:
    """Cohen's d of every place; of the sexes, at equal sizes of the head."""
    with_it, without = (contents[which] for which in (("men", "women") if effect == "sex" else (effect, "nothing")))
    measured, stated = {}, {}
    for place in regions().query(f"effect == '{effect}' and tissue != 'size'").itertuples():
        pair = np.stack([with_it[place.region], without[place.region]])
        measured[place.region] = np.subtract(*pair.mean(axis=1)) / np.sqrt(pair.var(axis=1, ddof=1).mean())
        stated[place.region] = place.d
    # The means are of the same people, so what errs is the SD: by 1/√(2 · 23) = 15% at most.
    pd.testing.assert_series_equal(pd.Series(measured, dtype=float), pd.Series(stated), rtol=0.3, atol=0.1)
