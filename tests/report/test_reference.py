"""Docstrings as Sphinx reads them, and which pages there are."""

import importlib
import pkgutil
from pathlib import Path

import pytest
import yaml

import deeplight_core
from deeplight_core.config import Profile, SweepSettings
from deeplight_core.models.protocol import Outcome
from deeplight_core.report import reference
from deeplight_core.report.front import comparison_front

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("book") / "reference"
    reference.write_pages(folder)
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.rst")}


def test_every_module_but_the_commands_is_on_one_page(pages):
    shown = [line.split()[-1] for page in pages.values() for line in page.splitlines() if "automodule::" in line]
    modules = [m.name for m in pkgutil.walk_packages(deeplight_core.__path__, "deeplight_core.")]
    commands = [m for m in modules if m.startswith("deeplight_core.commands")]
    assert commands
    assert sorted(shown) == sorted({"deeplight_core", *modules} - set(commands))


def test_every_wing_is_in_the_table_of_contents(pages):
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    (code,) = (part for part in parts if any(c.get("file", "").startswith("reference/") for c in part["chapters"]))
    assert sorted(c["file"] for c in code["chapters"]) == sorted(f"reference/{page}" for page in pages)


def test_a_wing_opens_with_more_than_a_line(pages):
    for wing in reference.WINGS:
        package = importlib.import_module("deeplight_core" if wing == "experiments" else f"deeplight_core.{wing}")
        first, blank, *words = (package.__doc__ or "").splitlines()
        assert first.endswith(".")
        assert not blank
        assert len(" ".join(words).split()) > 20, wing


def test_the_entries_of_a_docstring_become_lists():
    marked = reference.mark_sections(
        ["What it does.", "", "Parameters", "----------", "a, b : two numbers", "    of a kind", "*more : others", "",
         "Returns", "-------", "(N, *shape) of `a`"]
    )  # fmt: skip
    assert marked == [
        "What it does.", "", ".. rubric:: Parameters", "", "``a, b``", "    two numbers", "    of a kind", "``*more``",
        "    others", "", ".. rubric:: Returns", "", "(N, \\*shape) of `a`",
    ]  # fmt: skip


def test_a_signature_is_that_of_the_source_with_links_to_classes_of_the_project():
    found = reference.signature("function", reference.write_pages)
    assert found == ("(folder: Path)", "None")
    assert reference.signature("method", Profile.for_target) == ("(task: str)", "~deeplight_core.config.Profile")
    arguments, _ = reference.signature("function", comparison_front)
    assert arguments == "(profile: ~deeplight_core.config.Profile, results: pd.DataFrame)"
    assert reference.signature("class", Profile) == ("", None)
    assert reference.signature("class", Outcome) is None


def test_fields_of_settings_have_type_and_default():
    found = reference.fields(SweepSettings)
    assert found["repeats"] == "int = Field(1, ge=1)"
    assert set(found) == set(SweepSettings.model_fields)


def test_lists_have_a_blank_line_on_either_side():
    marked = reference.mark_sections(["What is done:", "- this", "  and that", "- these", "Then more.", "x : 1"])
    assert marked == ["What is done:", "", "- this", "  and that", "- these", "", "Then more.", "", "``x``", "    1"]
