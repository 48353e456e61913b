from pathlib import Path

import nbformat
import pytest
import yaml

from deeplight_core.config import Profile
from deeplight_core.preparation import SimulationSettings
from deeplight_core.report import book
from deeplight_core.report.reference import WINGS

PROFILE = Profile(name="tiny", simulation=SimulationSettings())
OTHERS = {"structural": "structure", "contrast": "windows", "images": "photographs", "comparison": "ways",
          "patients": "clinic"}  # fmt: skip
RESULTS = """variant,fraction,n_subjects,seed,fold,task,target,subject,level,measure,score
scratch,0.5,2,1,0,WM,state,s1,volume,accuracy,0.5
scratch,0.5,2,1,0,WM,state,s2,volume,accuracy,0.4
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with prose pages and one finished profile, `tiny`; nothing of real data has been run."""
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "book").mkdir()
    (tmp_path / "book/index.md").write_text("# Index\n")
    run = tmp_path / "runs/tiny"
    (run / "figures").mkdir(parents=True)
    (run / "figures/headline.png").write_bytes(b"png")
    (run / "figures/headline.md").write_text("A headline.\n")
    (run / "results.csv").write_text(RESULTS)
    (run / "profile.yaml").write_text(yaml.safe_dump(PROFILE.model_dump(mode="json")))
    for name, parameters in (
        ("04_statistics", {"name": "tiny", "sweep": {"seeds": [1]}}),
        ("controls_seeds", {"name": "tiny"}),
        ("03_finetuning/scratch-0.5-seed1", {"name": "tiny", "variant": "scratch", "fraction": 0.5, "seed": 1}),
    ):
        template = name.split("/", maxsplit=1)[0]
        write(run / f"notebooks/{name}.ipynb", parameters, f"notebooks/{template}.ipynb")
    return tmp_path


def write(path: Path, parameters: dict[str, object], template: str, outputs: list[object] | None = None) -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# A page\n\nIts text."),
        nbformat.v4.new_code_cell("1 + 1", outputs=outputs or []),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["papermill"] = {"parameters": parameters, "input_path": template, "exception": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def staged(project: Path) -> Path:
    book.stage(project, project / "out", "tiny", "haxby", **OTHERS)
    return project / "out"


@pytest.mark.parametrize(("source", "has"), [("{}", False), ("{loc: {a: [a]}}", True)])
def test_a_study_without_a_source_has_no_pages_of_pre_training(project: Path, source: str, has: bool) -> None:
    (project / "runs/tiny/profile.yaml").write_text(f"data: {{source: {source}}}\n")
    out = staged(project)
    text = "It takes one command" if has else "This study has no source, so nothing was pre-trained"
    assert text in (out / "notebooks/02_pretraining.md").read_text()
    assert "It takes one command" in (out / "notebooks/01_data.md").read_text()


def test_the_front_page_names_the_part_that_has_been_run(project: Path) -> None:
    (project / "runs/tiny").rename(project / "runs/haxby")
    front = (staged(project) / "book/generated/notebooks.md").read_text()
    assert "The pages of profile `haxby` are here: {doc}`/book/real_data`" in front


def last_cell(path: Path) -> str:
    return str(nbformat.read(path, as_version=4).cells[-1].source)


def test_every_page_ends_with_the_command_that_makes_it(project: Path) -> None:
    out = staged(project)
    statistics = last_cell(out / "notebooks/04_statistics.ipynb")
    assert "`make reproduce PROFILE=tiny`" in statistics
    command = "\npapermill notebooks/04_statistics.ipynb page.ipynb \\\n    -p profile runs/tiny/profile.yaml\n"
    assert command in statistics
    assert "`make controls PROFILE=tiny`" in last_cell(out / "notebooks/controls_seeds.ipynb")
    run = last_cell(out / "notebooks/03_finetuning/scratch-0.5-seed1.ipynb")
    assert "notebooks/03_finetuning.ipynb" in run
    assert "-p variant scratch -p fraction 0.5 -p seed 1\n" in run


def test_a_finetuning_page_is_named_after_its_run(project: Path) -> None:
    notebook = nbformat.read(staged(project) / "notebooks/03_finetuning/scratch-0.5-seed1.ipynb", as_version=4)
    assert notebook.cells[0].source.startswith("# Scratch, 50%\n")


def test_what_has_not_been_run_has_a_page_with_its_command(project: Path) -> None:
    out = staged(project)
    for page in book.PAGES:
        text = (out / f"real/{page}.md").read_text()
        assert "has not been run here" in text
        assert "make reproduce PROFILE=haxby DATA=/path/to/haxby2001-vt" in text
    assert "make autoencoders PROFILE=structure" in (out / "structural/06_transfer.md").read_text()
    assert "make images PROFILE=photographs" in (out / "images/08_natural_images.md").read_text()
    assert "make patients PROFILE=clinic" in (out / "patients/10_patients.md").read_text()
    assert "make contrast PROFILE=windows" in (out / "contrast/07_contrast.md").read_text()


def test_parts_of_other_profiles_hold_their_pages(project: Path) -> None:
    notebooks = project / "runs/windows/notebooks"
    write(notebooks / "07_contrast.ipynb", {"name": "windows"}, "notebooks/07_contrast.ipynb")
    write(notebooks / "01_data.ipynb", {"name": "windows"}, "notebooks/01_data.ipynb")
    out = staged(project)
    assert "`make contrast PROFILE=windows`" in last_cell(out / "contrast/07_contrast.ipynb")
    assert sorted(path.name for path in (out / "contrast").iterdir()) == [
        "01_data.ipynb", "07_claims.md", "07_contrast.ipynb", "data",
    ]  # fmt: skip


def test_a_part_that_is_half_done_has_a_page_for_what_is_missing(project: Path) -> None:
    out = staged(project)
    for page in {*book.PAGES} - {"04_statistics", "controls_seeds", "03_finetuning/none"}:
        assert "has not been run here" in (out / f"notebooks/{page}.md").read_text()
    for page in ("04_statistics", "controls_seeds", "03_finetuning/none"):
        assert not (out / f"notebooks/{page}.md").exists()


def test_the_front_and_the_reference_are_made(project: Path) -> None:
    out = staged(project)
    assert "(profile `tiny`)" in (out / "book/generated/front.md").read_text()
    assert (out / "book/generated/front.png").is_file()
    assert "automodule:: deeplight_core.data.store" in (out / "reference/data.rst").read_text()
    book.stage(project, out, "tiny", "haxby", False, **OTHERS)
    assert {path.name for path in (out / "reference").iterdir()} == {f"{wing}.md" for wing in WINGS}


def test_downloads_link_what_is_there(project: Path) -> None:
    generated = staged(project) / "book/generated"
    text = (generated / "notebooks-downloads.md").read_text()
    assert "{download}`results.csv <generated/notebooks/results.csv>`" in text
    assert "{download}`04_statistics.ipynb <../notebooks/04_statistics.ipynb>`" in text
    assert "statistics.csv <generated" not in text  # this run has none
    assert (generated / "notebooks/results.csv").read_text() == RESULTS
    assert "has not been run" in (generated / "real-downloads.md").read_text()


def test_a_page_with_an_error_is_refused(project: Path) -> None:
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    write(project / "runs/tiny/notebooks/04_statistics.ipynb", {}, "notebooks/04_statistics.ipynb", [error])
    with pytest.raises(ValueError, match=r"04_statistics.ipynb holds an error"):
        staged(project)


def test_staging_again_replaces_what_was_there(project: Path) -> None:
    out = staged(project)
    (out / "notebooks/stale.ipynb").write_text("{}")
    staged(project)
    assert not (out / "notebooks/stale.ipynb").exists()
