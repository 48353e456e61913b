import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from safetensors.torch import load_file
from test_loop import SETTINGS, tensorboard, train
from typer.testing import CliRunner

from deeplight_core.cli import app
from deeplight_core.config import Profile
from deeplight_core.data.store import Store
from deeplight_core.training.devices import _environment, available_precision, session

HERE = Path(__file__).parent
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def start(store: Store, folder: Path, **settings: object) -> subprocess.Popen[str]:
    """A training by several processes, with their output in one pipe."""
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}
    command = [sys.executable, str(HERE / "ranks.py"), str(store.path), json.dumps(settings), str(folder)]
    environment["PYTHONPATH"] = f"{HERE.parents[1]}:{HERE.parent}:{HERE}"
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(store: Store, folder: Path, **settings: object) -> tuple[int, str]:
    """Its exit status and output."""
    process = start(store, folder, **settings)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def metrics_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv", dtype={"subject": str})


def test_processes_that_share_the_batches_learn_the_same(store: Store, tmp_path: Path) -> None:
    """Dropout included; three share batches of 35 unequally, and of the two volumes left, one of them has none."""
    settings = {"batch_size": 35}
    one = train(store, tmp_path / "one", SETTINGS.model_copy(update=settings))[0]
    status, output = run(store, tmp_path / "many", devices=3, **settings)
    assert status == 0, output
    assert [line.partition(",")[0] for line in output.splitlines()] == ["run: epoch 1/2", "run: epoch 2/2"]
    many = metrics_of(tmp_path / "many")
    pd.testing.assert_frame_equal(one.drop(columns=["loss", "score"]), many.drop(columns=["loss", "score"]))
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=2e-4)
    assert [scalar.step for scalar in tensorboard(tmp_path / "many").Scalars("loss/train")] == [3, 6]


def test_gradients_are_those_of_the_whole_batch(store: Store, tmp_path: Path) -> None:
    """Adam's first moment after the first step is a tenth of the gradient; the batch of five leaves one idle."""
    settings = {"batch_size": 5}
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "one", SETTINGS.model_copy(update=settings), every_s=0, steps=1)
    status, _ = run(store, tmp_path / "many", devices=3, steps=1, **settings)
    assert status != 0  # interrupted after one step
    states = (load_file(tmp_path / folder / "state.safetensors") for folder in ("one", "many"))
    one, many = ({name: v for name, v in s.items() if name.startswith("adam.exp_avg.")} for s in states)
    assert one.keys() == many.keys()
    for name, moment in one.items():
        assert moment.norm() > 0
        assert (many[name] - moment).norm() < 1e-5 * moment.norm(), name  # sums of float32 in another order


def test_layers_that_unfreeze_on_several_processes(store: Store, tmp_path: Path) -> None:
    settings = {"groups": [{"layers": "encoder", "rate": 1.0, "from_epoch": 2, "until_epoch": None}]}
    loop = SETTINGS.model_validate({**SETTINGS.model_dump(), **settings})
    one = train(store, tmp_path / "one", loop)[0]
    status, output = run(store, tmp_path / "many", devices=2, **settings)
    assert status == 0, output
    np.testing.assert_allclose(metrics_of(tmp_path / "many")["loss"], one["loss"], rtol=2e-4)


def test_a_lost_process_ends_the_others_and_the_run_goes_on(store: Store, tmp_path: Path) -> None:
    states = []
    for lost in (0, 1):
        process = start(store, tmp_path / f"without-{lost}", devices=2, kill=[lost, 4])
        output, _ = process.communicate(timeout=120)  # the pipe closes when the last of them has ended
        assert process.returncode == (-signal.SIGKILL if lost == 0 else 2), output
        assert "another process of this training was lost" in output
        assert "the same command continues where it stopped" in output
        states.append(load_file(tmp_path / f"without-{lost}/state.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if name != "seconds")
    status, output = run(store, tmp_path / "without-1", devices=2)
    assert status == 0
    assert "run: going on at step 4 of 6" in output
    assert run(store, tmp_path / "unbroken", devices=2)[0] == 0
    whole, resumed = (load_file(tmp_path / folder / "weights.safetensors") for folder in ("unbroken", "without-1"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    pd.testing.assert_frame_equal(
        metrics_of(tmp_path / "without-1"), metrics_of(tmp_path / "unbroken"), check_exact=True
    )


def test_the_command_starts_its_processes(
    tiny_profile: Profile, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"data": tiny_profile.data.model_copy(update={"store": store.path})}
    profile = tiny_profile.model_copy(update=own).model_dump(mode="json")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(profile))
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}

    def deeplight(*options: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
        command = [*launcher, "-m", "deeplight_core.cli", "pretrain", "tiny.yaml", *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    many = deeplight("--devices", "2", "--precision", "bf16-mixed")
    assert many.returncode == 0, many.stderr
    assert many.stdout.count("epoch 2/2") == 1
    (folder,) = (tmp_path / "runs").glob("*/pretraining-*")
    assert many.stdout.count(str(folder)) == 1
    assert "× 2, " in (folder / "environment.txt").read_text()
    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(app, ["pretrain", "tiny.yaml", "--precision", "bf16-mixed"])
    assert f"found in {folder.name}" in again.stdout
    shutil.rmtree(folder)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    started = deeplight("--devices", "2", "--precision", "bf16-mixed", launcher=torchrun)
    assert started.returncode == 0, started.stderr
    assert started.stdout.count("epoch 2/2") == 1


def test_processes_that_go_on_from_different_states_stop(store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "0", every_s=0, steps=2)
    assert (tmp_path / "0/state.safetensors").is_file()
    status, output = run(store, tmp_path, devices=2, apart=True)
    assert status == 2
    assert "processes find different states in" in output


SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "bash"}


@pytest.mark.parametrize(
    ("variables", "asked", "expected"),
    [
        ({}, (1, 1), LightningEnvironment),
        ({}, (4, 1), LightningEnvironment),
        (SRUN, (4, 2), SLURMEnvironment),
        ({"SLURM_STEP_NUM_TASKS": "1"}, (4, 1), LightningEnvironment),  # in `srun --pty bash`
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8"}, (4, 2), TorchElasticEnvironment),
        ({}, (4, 2), "1 process.es. were started, but --devices 4 --nodes 2 makes 8; on several nodes"),
        (SRUN, (4, 1), "8 process.es. were started, but --devices 4 --nodes 1 makes 4"),
        (SRUN, (1, 1), "8 process.es. were started, but --devices 1 --nodes 1 makes 1"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, (1, 1), "2 process.es. were started"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, (4, 1), "Use `--ntasks-per-node=4` instead"),
    ],
)
def test_who_starts_the_processes(
    variables: dict[str, str], asked: tuple[int, int], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in RANKS]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            _environment(*asked)
    else:
        assert isinstance(_environment(*asked), expected)


def test_more_processes_than_volumes_in_a_batch() -> None:
    with pytest.raises(ValueError, match="20 processes cannot share batches of 16"), session(SETTINGS, 20):
        pass


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True}, "32-true"),
        ({"architecture": "x86_64", "avx512_bf16": True}, "bf16-mixed"),
        ({"architecture": "x86_64", "amx_bf16": True}, "bf16-mixed"),
    ],
)
def test_falls_back_to_float32(features: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: features)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert available_precision("bf16-mixed") == expected
    assert available_precision("32-true") == "32-true"


@pytest.mark.parametrize(("asked", "expected"), [(None, True), (False, False), (True, True)])
def test_exact_unless_told_otherwise(asked: bool | None, expected: bool) -> None:
    with session(SETTINGS.model_copy(update={"deterministic": asked})):
        assert torch.are_deterministic_algorithms_enabled() == expected
    assert not torch.are_deterministic_algorithms_enabled()
