"""The files that state versions agree: pyproject.toml, constraints.txt, environment.yml, CITATION.cff, CHANGELOG.md."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from deeplight_core import __version__

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def by_name(requirements: list[str]) -> dict[NormalizedName, Requirement]:
    parsed = [Requirement(text) for text in requirements]
    named = {canonicalize_name(requirement.name): requirement for requirement in parsed}
    assert len(named) == len(parsed), "a package is listed twice"
    return named


def pin(requirement: Requirement) -> str:
    (only,) = requirement.specifier
    assert only.operator == "==", requirement
    return only.version


def constraints() -> dict[NormalizedName, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = by_name([line for line in lines if line and not line.startswith("#")])
    return {name: pin(requirement) for name, requirement in pinned.items()}


def conda_environment() -> tuple[list[str], list[str]]:
    """What conda installs, and what pip installs."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    return [entry for entry in dependencies if isinstance(entry, str)], pip


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_constraints_pin_every_dependency_to_an_allowed_version(extra: str | None) -> None:
    pinned = constraints()
    for name, requirement in by_name(EXTRAS[extra] if extra else PROJECT["dependencies"]).items():
        assert name in pinned, f"{name} has no pin in constraints.txt"
        assert pinned[name] in requirement.specifier


def test_constraints_are_public_versions() -> None:
    for name, version in constraints().items():
        assert re.fullmatch(r"\d+(\.\d+)*(\.?(post|rc|a|b)\d+)?", version), f"{name}=={version}"


def test_conda_environment_has_the_same_packages_and_pins() -> None:
    pinned = constraints()
    wanted = by_name([*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["hpc"], *EXTRAS["dev"]])
    found = by_name([line for line in conda_environment()[1] if not line.startswith("--")])
    assert {name: pin(requirement) for name, requirement in found.items()} == {name: pinned[name] for name in wanted}


def test_conda_environment_installs_the_package_under_the_constraints() -> None:
    assert [line for line in conda_environment()[1] if line.startswith("--")] == [
        "--constraint constraints.txt",
        "--editable .",
    ]


def test_conda_environment_has_the_python_that_the_package_needs() -> None:
    (python,) = (entry.removeprefix("python=") for entry in conda_environment()[0] if entry.startswith("python="))
    assert f">={python}" == PROJECT["requires-python"]


def test_jupyterlab_stays_in_its_own_extra() -> None:
    """With it installed, everything that imports nbformat starts seconds later."""
    everywhere_else = [PROJECT["dependencies"], *(names for extra, names in EXTRAS.items() if extra != "lab")]
    assert all("jupyterlab" not in by_name(names) for names in everywhere_else)
    assert "jupyterlab" in by_name(EXTRAS["lab"])


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]


def test_changelog_opens_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == __version__


def imported(folder: str) -> set[str]:
    """Top-level names of all imports in a folder's modules, wherever they stand in the file."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("deeplight_core", ["structural", "hub", "images", "keras"]), ("tests", ["book", "hpc", "dev"])],
)
def test_every_import_is_a_declared_dependency(folder: str, extras: list[str]) -> None:
    declared = by_name([*PROJECT["dependencies"], *(name for extra in extras for name in EXTRAS[extra])])
    own = {"deeplight_core", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    distributions = packages_distributions()
    for name in sorted(imported(folder) - sys.stdlib_module_names - own):
        assert any(canonicalize_name(d) in declared for d in distributions[name]), f"{folder} imports {name}"
