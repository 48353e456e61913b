import nibabel as nib
import numpy as np
import pytest

from deeplight_core.analysis.localisation import MEASURES, localisation, regions, true_places


def test_measures_equal_their_definitions() -> None:
    """Voxel by voxel, with ties of the map's values in none of them."""
    random = np.random.default_rng(0)
    values, places = random.normal(size=60), random.random(60) < 0.3
    found = localisation(values, places)
    size = [abs(float(v)) for v in values]
    inside = [s for s, p in zip(size, places, strict=True) if p]
    outside = [s for s, p in zip(size, places, strict=True) if not p]
    ranked = sorted(range(60), key=lambda i: -size[i])
    assert set(found) == set(MEASURES)
    assert found["mass"] == pytest.approx(sum(inside) / sum(size))
    assert found["rank"] == pytest.approx(sum(places[i] for i in ranked[: len(inside)]) / len(inside))
    assert found["pointing"] == float(places[ranked[0]])
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    assert found["auc"] == pytest.approx(wins / (len(inside) * len(outside)))


def test_a_perfect_map_and_its_opposite() -> None:
    places = np.arange(20) < 5
    assert set(localisation(-3.0 * places, places).values()) == {1.0}
    assert set(localisation(1.0 * ~places, places).values()) == {0.0}
    assert all(np.isnan(value) for value in localisation(np.zeros(20), places).values())
    for wrong in (np.zeros(20, bool), np.ones(20, bool)):
        with pytest.raises(ValueError, match="of 20 voxels are to be found"):
            localisation(np.ones(20), wrong)


def test_true_places_are_those_of_large_contrast_of_either_sign() -> None:
    assert true_places(np.array([0.0, 1.0, -2.0, 0.9, -1.1])).tolist() == [False, True, True, False, True]
    assert true_places(np.array([0.0, 1.0, -2.0]), 0.8).tolist() == [False, False, True]
    assert not true_places(np.zeros(3)).any()


def test_regions_are_clusters_with_their_peaks_in_mm() -> None:
    data, affine = np.zeros((9, 10, 11)), np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-8, -12, -20]
    data[2:4, 3, 3], data[3, 3, 3] = 2.0, 4.0  # two voxels
    data[6, 7, 8] = -5.0
    data[8, 9, 10] = 1.0  # less than 30% of the largest
    table = regions(nib.Nifti1Image(data, affine))
    assert table["value"].tolist() == [-5.0, 4.0]
    assert table[["x", "y", "z"]].to_numpy().tolist() == [[4, 9, 12], [-2, -3, -8]]
    assert table["volume_mm3"].tolist() == [24, 48]
    assert len(regions(nib.Nifti1Image(data, affine), share=0.1)) == 3
    assert len(regions(nib.Nifti1Image(data, affine), n=1)) == 1
    assert regions(nib.Nifti1Image(np.abs(data), affine))["value"].tolist() == [5.0, 4.0]
    assert {"near", "near_mm"} < {*table}
    nothing = regions(nib.Nifti1Image(0 * data, affine))
    assert nothing.columns.tolist() == table.columns.tolist()
    assert nothing.empty


def test_places_are_named_after_the_nearest_of_known_ones() -> None:
    """By hand from the table of Dosenbach et al. (2010): vmPFC 6 64 3; precentral gyrus -44 -6 49; mPFC 0 51 32."""
    data, affine = np.zeros((91, 109, 91)), np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-90, -126, -72]
    places = {(6, 64, 6): "right vmPFC", (-44, -6, 50): "left precentral gyrus", (0, 52, 32): "mPFC"}
    for value, place in enumerate(places, start=3):
        data[tuple(((np.array(place) - affine[:3, 3]) / 2).astype(int))] = value
    table = regions(nib.Nifti1Image(data, affine))
    found = {tuple(map(int, row[:3])): row[3] for row in table[["x", "y", "z", "near"]].to_numpy()}
    assert found == places
    away = dict(zip(found, table["near_mm"], strict=True))
    assert [away[place] for place in places] == [3.0, 1.0, 1.0]
