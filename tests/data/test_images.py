from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from deeplight_core.data import images
from deeplight_core.data.images import load_bold, load_volume, read_frames, read_header

SHAPE = (7, 8, 9)
AFFINE = np.array([[-3.0, 0.2, 0, 9], [0, 3.5, 0, -12], [0.1, 0, 4, -16], [0, 0, 0, 1]])


def saved(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    return path


def test_a_run_is_loaded_slices_first(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(*SHAPE, 5)).astype(np.float32)
    bold = load_bold(saved(tmp_path / "bold.nii.gz", data))
    assert bold.shape == (5, 9, 8, 7)
    assert bold.dtype == torch.float32
    assert bold[4, 8, 7, 6] == data[6, 7, 8, 4]
    assert bold[1, 2, 3, 4] == data[4, 3, 2, 1]


def broken(kind: str, path: Path) -> Path:
    data = np.random.default_rng(0).normal(size=(*SHAPE, 5))
    if kind == "NaN":
        data[3, 3, 3, [1, 4]] = [np.nan, np.inf]
    saved(path, data[..., 0] if kind == "3-D" else data)
    if kind == "missing":
        path.unlink()
    elif kind in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if kind == "truncated" else 0])
    elif kind == "text":
        path.write_text("<html>404</html>" * 99)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("NaN", "holds NaN or infinite values in 2 of 5 volumes"),
        ("3-D", r"has 3 dimensions \(7, 8, 9\); a run has four"),
        ("truncated", "cannot be read as NIfTI .* cut short"),
        ("empty", r"is empty \(0 bytes\); fetch it again"),
        ("text", "cannot be read as NIfTI"),
        ("missing", "does not exist; correct the manifest"),
    ],
)
def test_a_broken_run_is_named(kind: str, message: str, suffix: str, tmp_path: Path) -> None:
    path = broken(kind, tmp_path / f"bold{suffix}")
    with pytest.raises(ValueError, match=rf"(?s)^{path} {message}"):
        load_bold(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "u1", "<f8"])
@pytest.mark.parametrize("scaling", [(None, None), (0.25, -7.5)])
def test_frames_are_what_nibabel_reads(
    dtype: str, scaling: tuple[float, float], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_FRAMES_BYTES", 2 * 4 * 7 * 8 * 9)  # two at a time
    values = np.random.default_rng(0).integers(0, 200, (*SHAPE, 5)).astype(dtype)
    image = nib.Nifti1Image(values, AFFINE, nib.Nifti1Header(endianness=">" if ">" in dtype else "<"))
    image.header.set_slope_inter(*scaling)
    path = tmp_path / f"bold{suffix}"
    nib.save(image, path)
    frames = list(read_frames(path))
    assert [len(part) for part in frames] == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat(frames).numpy().T, nib.load(path).get_fdata(dtype=np.float32))


@pytest.mark.parametrize("position", [-1, -6, -40, 0.5])
def test_a_flipped_bit_in_a_compressed_run_is_found(position: float, tmp_path: Path) -> None:
    path = saved(tmp_path / "bold.nii.gz", np.random.default_rng(0).normal(size=(*SHAPE, 5)))
    content = bytearray(path.read_bytes())
    content[int(position * len(content)) if isinstance(position, float) else position] ^= 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} cannot be read as NIfTI"):
        load_bold(path)


def test_an_image_of_two_files_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((*SHAPE, 3), np.float32), AFFINE), tmp_path / "bold.img")
    with pytest.raises(ValueError, match=r"bold.img is not a single NIfTI file"):
        load_bold(tmp_path / "bold.img")


def test_a_volume_may_have_a_fourth_axis_of_one(tmp_path: Path) -> None:
    data = np.random.default_rng(0).choice([-1.0, 0.0, 0.3, 2.0], SHAPE)
    for values in (data, data[..., None]):
        volume, affine = load_volume(saved(tmp_path / "mask.nii.gz", values))
        np.testing.assert_array_equal(volume, data.astype(np.float32))
        np.testing.assert_allclose(affine, AFFINE)


def test_a_broken_volume_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    with pytest.raises(ValueError, match=f"{path} has 4 dimensions"):
        load_volume(saved(path, np.ones((*SHAPE, 2))))
    with pytest.raises(ValueError, match=f"^{path} cannot be read as NIfTI"):
        load_volume(broken("truncated", path))


def test_nan_outside_the_mask_is_zero_and_inside_an_error(tmp_path: Path) -> None:
    data, brain = np.random.default_rng(0).normal(size=(*SHAPE, 5)), np.zeros(SHAPE, bool)
    brain[2:5, 2:5, 2:5] = True
    data[~brain] = np.nan
    bold = load_bold(saved(tmp_path / "bold.nii.gz", data), brain=brain)
    np.testing.assert_array_equal(bold.numpy().T, np.where(brain[..., None], data, 0).astype(np.float32))
    data[3, 3, 3, 1] = np.inf
    with pytest.raises(ValueError, match="in 1 of 5 volumes, in its mask"):
        load_bold(saved(tmp_path / "bold.nii.gz", data), brain=brain)


@pytest.mark.parametrize("shape", [(*SHAPE, 5, 1), (*SHAPE, 1, 5)])
def test_axes_of_length_one_are_dropped(shape: tuple[int, ...], tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path, zooms = saved(tmp_path / "bold.nii.gz", data), tuple(2.5 if n == 5 else 1.0 for n in shape)
    image = nib.load(path)
    image.header.set_zooms(zooms)
    nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
    assert (read_header(path).shape, read_header(path).tr_s) == ((*SHAPE, 5), 2.5)
    np.testing.assert_array_equal(load_bold(path).numpy().T, data.reshape(*SHAPE, 5))
    with pytest.raises(ValueError, match=r"has 5 dimensions \(7, 8, 9, 5, 2\)"):
        read_header(saved(tmp_path / "bold.nii.gz", np.zeros((*SHAPE, 5, 2))))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.dtseries.nii", "is a file of CIFTI; convert it to NIfTI"),
        ("x.mgz", "is a file of FreeSurfer's MGH; convert"),
        ("x+tlrc.BRIK", "is a file of AFNI's BRIK"),
    ],
)
def test_other_formats_are_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=message):
        read_header(tmp_path / name)


def test_what_a_file_is_instead_of_what_its_name_says(tmp_path: Path) -> None:
    plain = saved(tmp_path / "x.nii", np.zeros(SHAPE))
    plain.rename(tmp_path / "plain.nii.gz")
    saved(tmp_path / "y.nii.gz", np.zeros(SHAPE)).rename(tmp_path / "packed.nii")
    (tmp_path / "pointer.nii.gz").write_text("/annex/objects/MD5E-s9--0.nii.gz\n")
    (tmp_path / "link.nii.gz").symlink_to("gone.nii.gz")

    for name, message in {
        "plain.nii.gz": "not compressed: name it .nii", "packed.nii": "its name must end in .nii.gz",
        "pointer.nii.gz": "only a pointer of git-annex", "link.nii.gz": "is a link to a file that is not there",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_header(tmp_path / name)
