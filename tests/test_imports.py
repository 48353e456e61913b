"""Importing does nothing but import, and loads no more than is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {
    "dipy",
    "matplotlib",
    "monai",
    "nibabel",
    "nilearn",
    "numpy",
    "pandas",
    "pandera",
    "pingouin",
    "scipy",
    "sklearn",
    "torch",
}
REPORT = """
import json, logging, sys, warnings
before = list(warnings.filters)
import {module}
print(json.dumps({{
    "loaded": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "handlers": len(logging.getLogger().handlers),
    "filters": list(warnings.filters) == before,
}}))
"""


def import_alone(module: str, folder: Path) -> dict[str, object]:
    """What a new interpreter holds after `import module`, with an empty folder as home and working directory."""
    home = {name: str(folder) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")}
    result = subprocess.run(
        [sys.executable, "-c", REPORT.format(module=module)],
        cwd=folder, env={**os.environ, **home}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    report: dict[str, object] = json.loads(line)
    return report


@pytest.mark.parametrize("module", ["", ".tasks", ".config", ".system.progress", ".cli"])
def test_settings_and_command_load_nothing_slow(module: str, tmp_path: Path) -> None:
    """These are to start in 0.3 s; what is loaded says the same as a clock, on any machine."""
    report = import_alone(f"deeplight_core{module}", tmp_path)
    assert SLOW.isdisjoint(report["loaded"])
    assert list(tmp_path.rglob("*")) == []
    assert report["handlers"] == 0
    assert report["filters"]


@pytest.mark.parametrize(
    "module",
    [
        *(
            "data." + name
            for name in (
                "manifest",
                "scan",
                "events",
                "images",
                "preprocess",
                "simulate",
                "store",
                "plan",
                "prepare",
            )
        ),
        "analysis.measures",
        "analysis.statistics",
    ],
)
def test_data_and_statistics_load_no_torch(module: str, tmp_path: Path) -> None:
    """Worker processes import them anew; torch costs each of them a second and more."""
    report = import_alone(f"deeplight_core.{module}", tmp_path)
    assert {"torch", "pandera", "nilearn"}.isdisjoint(report["loaded"])
    assert list(tmp_path.rglob("*")) == []
    assert report["handlers"] == 0
