"""The book's source: the repository's own pages with executed notebooks in the place of the templates.

    <folder>/_config.yml, _toc.yml, CHANGELOG.md, book/    copies
    <folder>/notebooks/                         executed notebooks of a profile on the built-in dataset
    <folder>/real/                              executed notebooks of a profile on real data
    <folder>/book/generated/                    headline sentence and figure of both

What has not been run gets a page that says so and how to run it.
"""

import shutil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from deeplight_core.files import write_whole

__all__ = ["stage"]

PAGES = {
    "01_data": "Data",
    "02_pretraining": "Pre-training",
    "03_finetuning/none": "Fine-tuning one decoder",
    "04_statistics": "Does pre-training help?",
}
REPRODUCE = {"haxby": "make reproduce PROFILE=haxby DATA=/path/to/haxby2001-vt"}


def stage(root: Path, folder: Path, built_in: str, real: str) -> None:
    """Fill `folder` with everything that `jupyter-book build` needs; what was there is replaced.

    Parameters
    ----------
    root : the repository
    built_in, real : names of the profiles whose notebooks (`runs/<name>/notebooks`) make the two parts

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
    for part, profile in (("notebooks", built_in), ("real", real)):
        source = root / "runs" / profile
        command = REPRODUCE.get(profile, f"make reproduce PROFILE={profile}")
        if (source / "notebooks" / "04_statistics.ipynb").is_file():
            for notebook in [*source.glob("notebooks/*.ipynb"), *source.glob("notebooks/03_finetuning/*.ipynb")]:
                _page(notebook, folder / part / notebook.relative_to(source / "notebooks"))
            shutil.copy(source / "figures" / "headline.png", generated / f"{part}.png")
            headline = (source / "figures" / "headline.md").read_text(encoding="utf-8")
            figure = (
                f"```{{figure}} generated/{part}.png\n:alt: Validation accuracy against the amount of training data, "
                "for the pre-trained decoder, the one from scratch and logistic regression\n:width: 640px\n\n"
                f"Validation accuracy against the amount of training data (profile `{profile}`); 95% intervals.\n```\n"
            )
            text = f"{headline}\n{figure}"
        else:
            text = f"*This part has not been run here.* It takes one command:\n\n```bash\n{command}\n```\n"
            for page, title in PAGES.items():
                path = folder / part / f"{page}.md"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"# {title}\n\n{text}", encoding="utf-8")
        (generated / f"{part}.md").write_text(text, encoding="utf-8")


def _page(source: Path, target: Path) -> None:
    """Copy an executed notebook with its code folded; give the page of a fine-tuning run a title of its own."""
    notebook = nbformat.read(source, as_version=4)
    failed = [c for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    if failed or notebook.metadata.get("papermill", {}).get("exception"):
        raise ValueError(f"{source} holds an error; delete it and run the workflow again")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _fold(cell)
    if target.parent.name == "03_finetuning":
        chosen = notebook.metadata["papermill"]["parameters"]
        seed = f", seed {chosen['seed']}" if chosen["seed"] != 1 else ""
        title = f"# {chosen['variant'].capitalize()}, {100 * chosen['fraction']:g}%{seed}"
        body = notebook.cells[0].source.split("\n", 1)[1]
        notebook.cells[0].source = f"{title}\n{body}"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda p: nbformat.write(notebook, p))


def _fold(cell: NotebookNode) -> None:
    tags = cell.metadata.setdefault("tags", [])
    if "parameters" in tags:
        tags.append("remove-cell")  # the injected ones follow
    elif "hide-output" in tags:
        tags[:] = ["hide-cell"]
    elif all("text/markdown" in output.get("data", {}) for output in cell.outputs):
        tags.append("remove-input")  # prose with computed numbers
    else:
        tags.append("hide-input")
