import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import N_KEPT, RUN_FILE, SHAPE, flip_bit, truncate

from deeplight_core.store import Store, open_store, verify


def test_voxels_are_in_the_order_of_z_y_x(store: Store) -> None:
    x, y, z = SHAPE
    order = [(i, j, k) for k in range(z) for j in range(y) for i in range(x) if store.mask[i, j, k]]
    values = np.arange(1.0, len(order) + 1)
    image = store.unmask(values)
    data = image.get_fdata()
    assert [data[voxel] for voxel in order] == values.tolist()
    assert (data[~store.mask] == 0).all()
    np.testing.assert_array_equal(image.affine, store.affine)
    np.testing.assert_array_equal(data.T[store.mask.T], values)


@pytest.mark.parametrize("crop", [False, True])
def test_shape_that_the_model_sees(store: Store, crop: bool) -> None:
    store = replace(store, info={**store.info, "preprocessing": {**store.info["preprocessing"], "crop": crop}})
    assert store.shape == ((5, 5, 7) if crop else SHAPE)
    assert store.mask[store.box].sum() == store.mask.sum()


# ---- damaged stores


@pytest.mark.parametrize("damage", [truncate, flip_bit, lambda path: flip_bit(path, 20), Path.unlink])
def test_damaged_run_is_found_and_named(copied: Path, damage: Callable[[Path], None], store: Store) -> None:
    damage(copied / RUN_FILE)
    with pytest.raises(ValueError, match=RUN_FILE):
        open_store(copied).read(RUN_FILE)
    other = "runs/sub-s1_task-SOCIAL_run-LR.safetensors"
    assert (open_store(copied).read(other) == store.read(other)).all()


def test_verify_finds_nothing_wrong_with_a_store(store: Store) -> None:
    assert verify(store.path) == []


def test_verify_names_everything_that_is_wrong(copied: Path, store: Store) -> None:
    flip_bit(copied / RUN_FILE)
    (copied / "runs/sub-s1_task-SOCIAL_run-LR.safetensors").unlink()
    lost = store.index["file"] == "runs/sub-s2_task-SOCIAL_run-LR.safetensors"
    store.index[~(lost & (store.index["row"] == 0))].to_parquet(copied / "index.parquet")
    problems = verify(copied)
    for expected in (
        rf"{RUN_FILE} is damaged", "sub-s1_task-SOCIAL_run-LR.safetensors is gone",
        rf"sub-s2_task-SOCIAL_run-LR.safetensors holds \({N_KEPT}, .* the index says \({N_KEPT - 1},",
    ):  # fmt: skip
        assert sum(bool(re.search(expected, p)) for p in problems) == 1, expected
    assert len(problems) == 3


@pytest.mark.parametrize("name", ["store.json", "mask.nii.gz", "runs.parquet", "index.parquet"])
def test_damaged_index_is_an_error(copied: Path, name: str) -> None:
    truncate(copied / name)
    with pytest.raises(ValueError, match=f"store {copied} is damaged"):
        open_store(copied)


def test_open_store_says_what_is_missing(copied: Path) -> None:
    (copied / "index.parquet").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        open_store(copied)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_store(copied / "nowhere")
