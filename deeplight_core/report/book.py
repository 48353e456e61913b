"""The book's source: the repository's pages, with executed notebooks instead of templates::

    <folder>/_config.yml, _toc.yml, CHANGELOG.md, book/    copies
    <folder>/notebooks/                         executed notebooks of a profile on the built-in dataset
    <folder>/real/                              executed notebooks of a profile on real data
    <folder>/structural/                        executed notebooks of a profile on structural images
    <folder>/contrast/                          executed notebooks of a profile of temporal contrast
    <folder>/images/                            executed notebooks of a profile of networks for photographs
    <folder>/patients/                          the executed notebook of a profile of a small study
    <folder>/comparison/                        executed notebooks of a profile that compares ways to pre-train
    <folder>/book/generated/                    the front; headlines and figures; tables and notebooks to download
    <folder>/reference/                         a page for each wing of the code

A notebook that has not been run gets a page that says so and how to run it. Executed pages end with their command.
"""

import json
import shutil
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from deeplight_core.report.findings import make_command
from deeplight_core.report.front import write_front
from deeplight_core.report.reference import WINGS, write_pages
from deeplight_core.sweeps import CONTROLS
from deeplight_core.system.files import write_whole

__all__ = ["stage"]

PAGES = {
    "01_data": "Data",
    "02_pretraining": "Pre-training",
    "03_finetuning/none": "Fine-tuning one decoder",
    "04_statistics": "Does pre-training help?",
    "05_interpretation": "Where do decisions come from?",
    "paper_and_this_run": "Paper and this run, side by side",
    "controls_baselines": "Linear baselines",
    "controls_initialisation": "Initialisation: conditioning or features?",
    "controls_permutation": "Permuted labels",
    "controls_tasks": "Leaving each task out",
    "controls_seeds": "Repeated trainings",
    "controls_steps": "Were the trainings long enough?",
    "controls_rates": "One learning rate for all?",
    "06_volumes": "Autoencoding fMRI volumes",
    "controls_gain": "What does it take for pre-training to help?",
    "full_run": "What the full run takes",
    "performance": "Speed",
    "scaling": "On more GPUs, and beyond HCP",
}
_OF_SOURCE = ("02_pretraining", "paper_and_this_run", "06_volumes")  # pages that need one
_NO_SOURCE = "This study has no source, so nothing was pre-trained, and it has no such page.\n"
# Parts that are whole with one page: the command that makes it, that page, and the titles of all.
_OTHERS = {
    "structural": (
        "autoencoders",
        "06_transfer",
        {
            "06_autoencoder": "Autoencoders of structural images",
            "06_transfer": "Transfer between cohorts",
            "06_faults": "Why the report's transfers did not converge",
            "06_claims": "Atanaszov & Ritter (2019) and this run",
            "01_data": "Structural images",
            "data/none": "The cohorts",
        },
    ),
    "contrast": (
        "contrast",
        "07_contrast",
        {
            "07_contrast": "Temporal contrast",
            "07_claims": "Shi et al. (2023) and this run",
            "01_data": "Runs of the contrast",
            "data/none": "Unprepared runs, and many tasks",
        },
    ),
    "images": (
        "images",
        "08_natural_images",
        {
            "08_natural_images": "Photographs, video and phenotypes",
            "08_claims": "Malik & Bzdok (2022) and this run",
            "01_data": "The cohort with phenotypes",
        },
    ),
    "patients": ("patients", "10_patients", {"10_patients": "Your twelve patients"}),
    "comparison": (
        "comparison",
        "09_comparison",
        {"09_comparison": "Four ways to pre-train", "01_data": "Runs of the comparison"},
    ),
}
_OWN_PARAMETERS = ("transfer", "route", "target", "variant", "fraction", "seed", "fold")  # beside profile and overrides
_TABLES = {
    "results.csv": "scores of every held-out subject in every training of the sweep, by volume and by block",
    "curves.csv": "learning curves of the sweep, in training and validation",
    **{f"controls_{control}.csv": f"the same for the control *{control}*" for control in CONTROLS},
    "statistics.csv": "tests, corrections, effect sizes and intervals per fraction",
    "subjects_saved.csv": "subjects from scratch that equal n pre-trained ones",
    "pairs.csv": "tests of every two decoders of the comparison at every size",
    "published.csv": "scores of each paper's own architecture, as in `results.csv`",
    "transfer_map.csv": "tests of every task as the target",
    "paper_and_this_run.csv": "every number of the paper beside this run's",
}


def stage(root: Path, folder: Path, built_in: str, real: str, reference: bool = True, **others: str) -> None:
    """Fill `folder` with everything that `jupyter-book build` needs, in place of its contents.

    Parameters
    ----------
    root : the repository
    built_in, real, others : names of the profiles whose notebooks (`runs/<name>/notebooks`) make the parts; others are
        structural, contrast, images, comparison and patients
    reference : with the pages of the code, which take Sphinx longer than all others

    Raises
    ------
    ValueError
        If an executed notebook holds an error.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md"):
        shutil.copy(root / name, folder / name)
    shutil.copytree(root / "book", folder / "book")
    generated = folder / "book" / "generated"
    generated.mkdir()
    if reference:
        write_pages(folder / "reference")
    else:
        _fill(folder / "reference", WINGS, "*This book leaves out the reference of the code.*\n")
    write_front(generated, root / "runs" / built_in, root / "runs" / others["comparison"])
    for part, profile in (("notebooks", built_in), ("real", real)):
        source = root / "runs" / profile
        absent = _absent("reproduce", profile)
        if (source / "notebooks" / "04_statistics.ipynb").is_file():
            for notebook in [*source.glob("notebooks/*.ipynb"), *source.glob("notebooks/03_finetuning/*.ipynb")]:
                _page(notebook, folder / part / notebook.relative_to(source / "notebooks"), profile)
            (generated / part).mkdir()
            for table in _TABLES:
                if (source / table).is_file():
                    shutil.copy(source / table, generated / part / table)
            shutil.copy(source / "figures" / "headline.png", generated / f"{part}.png")
            headline = (source / "figures" / "headline.md").read_text(encoding="utf-8")
            figure = (
                f"```{{figure}} generated/{part}.png\n:alt: Validation accuracy against the amount of training data, "
                "for the pre-trained decoder, the one from scratch and logistic regression\n:width: 640px\n\n"
                f"Validation accuracy against the amount of training data (profile `{profile}`); 95% intervals.\n```\n"
            )
            text = f"{headline}\n{figure}"
        else:
            text = absent
            if part == "notebooks" and (root / "runs" / real / "notebooks/04_statistics.ipynb").is_file():
                text += f"\nThe pages of profile `{real}` are here: {{doc}}`/book/real_data` and those after it.\n"
        _fill(folder / part, PAGES, absent)
        if _without_source(source / "profile.yaml"):
            _fill(folder / part, {name: PAGES[name] for name in _OF_SOURCE}, _NO_SOURCE)
        (generated / f"{part}.md").write_text(text, encoding="utf-8")
        downloads = _downloads(folder, part) or text
        (generated / f"{part}-downloads.md").write_text(downloads, encoding="utf-8")

    for part, (target, whole_with, pages) in _OTHERS.items():
        profile = others[part]
        source = root / "runs" / profile / "notebooks"
        if (source / f"{whole_with}.ipynb").is_file():
            for notebook in [*source.glob("*.ipynb"), *source.glob("data/*.ipynb")]:
                _page(notebook, folder / part / notebook.relative_to(source), profile)
        _fill(folder / part, pages, _absent(target, profile))


def _without_source(profile: Path) -> bool:
    """Whether a profile that has been run has no source, so that some of its pages do not exist."""
    return profile.is_file() and not yaml.safe_load(profile.read_text(encoding="utf-8")).get("data", {}).get(
        "source", True
    )


def _absent(target: str, profile: str) -> str:
    """The text of a page that has not been made."""
    return (
        f"*This part has not been run here.* It takes one command:\n\n```bash\n{make_command(target, profile)}\n```\n"
    )


def _fill(folder: Path, pages: dict[str, str], absent: str) -> None:
    """Write a page for every notebook that has not been run."""
    for page, title in pages.items():
        path = folder / f"{page}.md"
        there = path.parent.glob("*.ipynb") if path.stem == "none" else path.parent.glob(f"{path.stem}.ipynb")
        if not any(there):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {title}\n\n{absent}", encoding="utf-8")


def _downloads(folder: Path, part: str) -> str:
    """A list of links, relative to the folder of prose pages, to a part's tables and executed notebooks."""
    tables = [
        f"- {{download}}`{name} <generated/{part}/{name}>`: {what}"
        for name, what in _TABLES.items()
        if (folder / "book" / "generated" / part / name).is_file()
    ]
    notebooks = [
        f"- {{download}}`{path.name} <../{path.relative_to(folder).as_posix()}>`"
        for path in sorted((folder / part).glob("*.ipynb"))
    ]
    return "\n".join([*tables, *notebooks]) + "\n" if notebooks else ""


def _page(source: Path, target: Path, profile: str) -> None:
    """Copy an executed notebook: fold its code, append the command that makes it, and title a fine-tuning."""
    notebook = nbformat.read(source, as_version=4)
    failed = [c for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    if failed or notebook.metadata.get("papermill", {}).get("exception"):
        raise ValueError(f"{source} holds an error; delete it and run the workflow again")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _fold(cell)
    chosen = notebook.metadata["papermill"]["parameters"]
    if target.parent.name == "03_finetuning":
        seed = f", seed {chosen['seed']}" if chosen["seed"] != 1 else ""
        fold = f", fold {chosen['fold']}" if chosen.get("fold") else ""
        title = f"# {chosen['variant'].capitalize()}, {100 * chosen['fraction']:g}%{seed}{fold}"
        body = notebook.cells[0].source.split("\n", 1)[1]
        notebook.cells[0].source = f"{title}\n{body}"
    notebook.cells.append(nbformat.v4.new_markdown_cell(_how_to_reproduce(notebook, profile), id="reproduce"))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda p: nbformat.write(notebook, p))


def _how_to_reproduce(notebook: NotebookNode, profile: str) -> str:
    record = notebook.metadata["papermill"]
    name = Path(record["input_path"]).name
    chosen = {key: record["parameters"].get(key, "") for key in _OWN_PARAMETERS}
    own = " ".join(f"-p {key} {value}" for key, value in chosen.items() if value != "")
    if overrides := record["parameters"].get("overrides"):
        own += f" -y '{json.dumps({'overrides': overrides})}'"
    lines = [f"papermill notebooks/{name} page.ipynb", f"-p profile runs/{profile}/profile.yaml", own]
    page = " \\\n    ".join(filter(None, lines))
    made_by = {"controls_gain": "gain", "06_volumes": "controls", "06_faults": "controls", "06_": "autoencoders",
               "07_": "contrast", "08_": "images", "09_": "comparison", "10_": "patients",
               "controls_": "controls"}  # fmt: skip
    target = next((target for start, target in made_by.items() if name.startswith(start)), "reproduce")
    return (
        "```{admonition} Reproduce this page\n:class: tip\n"
        f"`{make_command(target, profile)}` makes this page and all that it needs. This page alone, afterwards:\n\n"
        f"~~~bash\n{page}\n~~~\n```"
    )


def _fold(cell: NotebookNode) -> None:
    tags = cell.metadata.setdefault("tags", [])
    if "parameters" in tags:
        tags.append("remove-cell")  # the injected parameters follow
    elif "hide-output" in tags:
        tags[:] = ["hide-cell"]
    elif all("text/markdown" in output.get("data", {}) for output in cell.outputs):
        tags.append("remove-input")  # prose with computed numbers
    else:
        tags.append("hide-input")
