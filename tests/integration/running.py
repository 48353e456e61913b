"""How the integration tests run the workflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def copy_of_repository(folder: Path) -> Path:
    """A copy without tests and results, in an empty folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def workflow(profile: str, **config: object) -> list[str]:
    """The command; two jobs at a time, so that no core is idle when the other tests are done."""
    settings = [f"profile={profile}", *(f"{key}={value}" for key, value in config.items())]
    return ["snakemake", "--nolock", "--rerun-incomplete", "--cores", "2", "--config", *settings]


def run(command: list[str], project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project; its output and its errors come together."""
    return subprocess.run(
        command, cwd=project, env={**ENVIRONMENT, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
