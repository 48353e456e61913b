"""A hand-made HCP-layout dataset on a 7×8×9 grid, small enough that every test can afford it, and its store."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from kernels import warm_kernels

from deeplight_core.config import Profile
from deeplight_core.data.manifest import COLUMNS, write_manifest
from deeplight_core.data.prepare import prepare
from deeplight_core.data.store import Store
from deeplight_core.preparation import SimulationSettings

os.environ["OMP_NUM_THREADS"] = "1"  # tiny volumes gain nothing from threads, and on a busy machine these wait long
os.environ["OMP_WAIT_POLICY"] = "passive"  # and where a test asks for threads, they do not burn a core while they wait

SHAPE = (7, 8, 9)
AFFINE = np.array([[-3.0, 0, 0, 9], [0, 3.5, 0, -12], [0, 0, 4, -16], [0, 0, 0, 1]])  # unequal edges of a voxel
TR_S = 2.0
N_FRAMES = {"EMOTION": 40, "SOCIAL": 44}
EVENTS = {"EMOTION": ("fear", "neut"), "SOCIAL": ("mental", "rnd")}
ONSETS_S = (2, 14, 26, 38, 50, 62)  # blocks of 10 s, the two events in turn
N_KEPT = 18  # volumes per run: three of each block, after the two TRs that are dropped
SUBJECTS = {"s1": "train", "s2": "train", "s3": "train", "s4": "train", "s5": "validation", "s6": "validation"}

Dataset = tuple[pd.DataFrame, Path]
RUN_FILE = "runs/sub-s3_task-SOCIAL_run-LR.safetensors"
RUN = "s3/MNINonLinear/Results/tfMRI_SOCIAL_LR"
IMAGE, MASK, EVS = f"{RUN}/tfMRI_SOCIAL_LR.nii.gz", f"{RUN}/brainmask_fs.2.nii.gz", f"{RUN}/EVs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that processes that share the files end together."""
    longest = ("test_workflow.py", "test_devices.py", "test_other_profiles.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def use_threads(patch: pytest.MonkeyPatch) -> None:
    """Let threads prepare runs, because each process needs seconds to import torch."""
    patch.setattr("deeplight_core.system.workers.ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """Manifest and root: six subjects × two tasks; each event adds its own map to noise, and masks differ a little."""
    root, random = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    maps = {name: random.normal(size=SHAPE) for names in EVENTS.values() for name in names}
    rows = []
    for subject, split in SUBJECTS.items():
        mask = np.zeros(SHAPE, np.uint8)
        mask[1:6, 2:7, 1:8] = random.random((5, 5, 7)) < 0.7  # an uneven margin on every side
        for task, names in EVENTS.items():
            folder = root / f"{subject}/MNINonLinear/Results/tfMRI_{task}_LR"
            (folder / "EVs").mkdir(parents=True)
            bold = random.normal(100, 1, (*SHAPE, N_FRAMES[task]))
            for i, onset in enumerate(ONSETS_S):
                bold[..., onset // 2 : onset // 2 + 5] += maps[names[i % 2]][..., None]
            for i, name in enumerate(names):
                (folder / f"EVs/{name}.txt").write_text("".join(f"{onset}\t10\t1\n" for onset in ONSETS_S[i::2]))
            nib.save(nib.Nifti1Image(bold.astype(np.float32), AFFINE), folder / f"tfMRI_{task}_LR.nii.gz")
            nib.save(nib.Nifti1Image(mask, AFFINE), folder / "brainmask_fs.2.nii.gz")
            where = folder.relative_to(root).as_posix()
            rows.append(
                ["tiny", subject, "", task, "LR", f"{where}/{folder.name}.nii.gz", f"{where}/EVs",
                 f"{where}/brainmask_fs.2.nii.gz", TR_S, N_FRAMES[task], split, "", ""]
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS)), root


@pytest.fixture(scope="session")
def tiny_profile(dataset: tuple[pd.DataFrame, Path]) -> Profile:
    """Pre-trains on EMOTION, fine-tunes on SOCIAL, each within a second; its folders are in the working directory."""
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "threads": 1}
    return Profile.model_validate(
        {
            "name": "tiny",
            "data": {
                "root": dataset[1], "source": {"EMOTION": ["fear", "neutral"]},
                "target": {"SOCIAL": ["interaction", "no interaction"]},
            },
            "routes": {
                "supervised": {"encoder": {"initialisation": "he"}, "pretraining": training},
                "autoencoder": {"encoder": {"widths": [4, 3]}, "pretraining": training},
                "variational": {"encoder": {"widths": [4, 3]}, "pretraining": training},
                "multitask": {"encoder": {"widths": [4, 3]}, "head": {"auxiliary": []}, "pretraining": training},
                "residual": {"encoder": {"widths": [4]}, "pretraining": training},
                "reconstruction": {"pretraining": training},
            },
            "finetuning": training, "sweep": {"fractions": [0.5]},
        }
    )  # fmt: skip


@pytest.fixture(scope="session")
def store(dataset: tuple[pd.DataFrame, Path], tiny_profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The dataset's store, to be read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        use_threads(patch)
        return prepare(dataset[0], tiny_profile, jobs=1)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path, SimulationSettings]:
    """Manifest, root and settings of a simulated dataset, to be read only: two subjects × two tasks at 10 mm."""
    from deeplight_core.data.simulate import plan, simulate  # here, since the scripts of tests import this file

    manifest = plan(1, 1, 4 * 0.72, ("LR",))
    manifest = manifest[manifest["task"].isin(["GAMBLING", "EMOTION"])].reset_index(drop=True)
    root, settings = tmp_path_factory.mktemp("simulated"), SimulationSettings(resolution_mm=10, seed=3)
    simulate(manifest, root, settings, jobs=2)
    return manifest, root, settings


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables with which papermill's kernels start at once."""
    with warm_kernels(tmp_path_factory.mktemp("kernels"), Path(__file__).parents[1]) as environment:
        yield environment


def real_data(name: str) -> Path:
    """A folder of real data beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared/data" / name
    if not folder.is_dir():
        pytest.skip(f"real data {folder} is not on this machine")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_leftovers(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without temporary files: ours and those of safetensors."""
    return {name: data for name, data in files.items() if not Path(name).name.startswith(("partial_", ".tmp"))}


def flip_bit(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project."""
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    return tmp_path


@pytest.fixture
def copied(store: Store, project: Path, tiny_profile: Profile) -> Path:
    """A copy of the store, for tests that damage it."""
    return shutil.copytree(store.path, tiny_profile.store)


@pytest.fixture
def spoilt(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the dataset, for tests that damage it."""
    return dataset[0].copy(), Path(shutil.copytree(dataset[1], tmp_path / "spoilt"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """A project with the dataset's manifest, for a whole module."""
    folder = tmp_path_factory.mktemp("home")
    write_manifest(dataset[0], folder / "data_manifest.csv")
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    use_threads(monkeypatch)


@pytest.fixture
def no_window() -> Iterator[None]:
    """Figures in the house's style, closed after the test."""
    import matplotlib as mpl  # here, since the scripts of tests import this file
    import matplotlib.pyplot as plt

    from deeplight_core.report import plots

    with mpl.rc_context():
        mpl.use("agg")
        plots.use_style()
        yield
        plt.close("all")


def page_of(notebook: str, profile: Profile, patch: pytest.MonkeyPatch) -> str:
    """What a notebook says and shows of a profile: its code, executed here."""
    said: list[str] = []
    patch.setattr("deeplight_core.report.page.say", lambda *texts: said.extend(texts))
    patch.setattr("deeplight_core.report.page.show", lambda table: said.append(table.to_html()))
    Path("of_page.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")), encoding="utf-8")
    names: dict[str, object] = {}
    path = Path(__file__).parents[1] / f"notebooks/{notebook}.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names["profile"] = "of_page.yaml"
    return "\n".join(said)


def changed(profile: Profile, root: Path | None = None, store: Path | None = None, **preprocessing: object) -> Profile:
    """A profile with another root, another folder for its store, other preprocessing."""
    data = profile.data.model_copy(update={"root": str(root or profile.data.root), "store": store})
    settings = profile.preprocessing.model_copy(update=preprocessing)
    return profile.model_copy(update={"data": data, "preprocessing": settings})


def unfinished(store: Path) -> None:
    """Take away what is written last."""
    (store / "index.parquet").unlink()


def edit_info(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a store's store.json says."""
    info = json.loads((store / "store.json").read_text())
    change(info)
    (store / "store.json").write_text(json.dumps(info, indent=1) + "\n")


def data_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """The volumes and tables of a store; its records also hold the times at which sources were changed."""
    return {name: data for name, data in files.items() if name.endswith((".safetensors", ".parquet"))}


@pytest.fixture
def own_mounts(tmp_path: Path) -> tuple[str, ...]:
    """What to put before a command that is to mount file systems that only it sees."""
    command = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
    try:
        tried = subprocess.run([*command, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no file system can be mounted: {error}")
    if tried.returncode != 0:
        pytest.skip(f"this user may not mount file systems: {tried.stderr}")
    return command


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in bfloat16 also where the CPU has no instructions for it: torch computes it all the same, slowly."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": True})


def kill_at_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt the training at a step, counted from 1."""
    from deeplight_core.training import loop  # here, since tests without torch import this file

    step, steps = loop._take_step, []

    def killed(*given: Any) -> None:
        steps.append(given)
        if len(steps) == number:
            raise KeyboardInterrupt
        step(*given)

    patch.setattr(loop, "_take_step", killed)
