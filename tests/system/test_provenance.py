import re
import subprocess
from pathlib import Path

import pytest

from deeplight_core.system import provenance
from deeplight_core.system.provenance import code_hash, commit


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in a repository of its own."""
    folder = tmp_path / "repository/some_package"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text('__version__ = "7.8.9"\n')
    (folder / "models/net.py").write_text('"""A net."""\n\n\ndef f(x):\n    """Double."""\n    return 2 * x\n')
    (folder.parent / "readme.txt").write_text("read me")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *command], cwd=folder.parent, check=True)
    monkeypatch.setattr(provenance, "_PACKAGE", folder)
    code_hash.cache_clear()
    return folder


def changed(package: Path, old: str, new: str) -> str:
    """The hash after a change of the code."""
    path = package / "models/net.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    code_hash.cache_clear()
    return code_hash()


def test_only_what_is_computed_changes_the_hash(package: Path) -> None:
    before = code_hash()
    assert re.fullmatch("[0-9a-f]{12}", before)
    assert changed(package, "A net.", "Another sentence.") == before
    assert changed(package, "Double.", "Twice.") == before
    assert changed(package, "return", "# a comment\n    return") == before
    assert changed(package, "2 * x", "3 * x") != before
    assert changed(package, "3 * x", "2 * x") == before
    assert changed(package, "def f", "def g") != before


def test_the_commit_and_whether_the_tree_was_clean(package: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=package, capture_output=True, text=True, check=True)
    assert commit() == head.stdout.strip()
    (package.parent / "readme.txt").write_text("changed")  # no code
    assert commit() == head.stdout.strip()
    changed(package, "2 * x", "3 * x")
    assert commit() == f"{head.stdout.strip()} and changes"


def test_an_installed_package_has_no_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some other repository is around it, as around a virtual environment."""
    elsewhere = package.parent / "site-packages/some_package"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("")
    monkeypatch.setattr(provenance, "_PACKAGE", elsewhere)
    assert commit().startswith("no commit is known; installed version ")
    monkeypatch.setenv("PATH", "")
    assert commit().startswith("no commit is known; installed version ")
