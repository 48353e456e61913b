"""Commands that make pages."""

from pathlib import Path
from typing import Annotated

import typer

from deeplight_core.config import project_root

__all__ = ["book", "report"]


def book(
    folder: Annotated[Path, typer.Argument(help="Folder for the book's source; replaced if it exists.")],
    built_in: Annotated[str, typer.Option(help="Profile on the built-in dataset.")] = "demo",
    real: Annotated[str, typer.Option(help="Profile on real data.")] = "haxby",
    structural: Annotated[str, typer.Option(help="Profile on structural images.")] = "autoencoder",
    contrast: Annotated[str, typer.Option(help="Profile of temporal contrast.")] = "contrast",
    images: Annotated[str, typer.Option(help="Profile of networks for photographs.")] = "images",
    patients: Annotated[str, typer.Option(help="Profile of a small study with two groups.")] = "patients",
    comparison: Annotated[str, typer.Option(help="Profile that compares ways to pre-train.")] = "comparison",
    reference: Annotated[bool, typer.Option(help="With the pages of the code.")] = True,
) -> None:
    """Put the book's pages and the executed notebooks together, for `jupyter-book build`.

    Example: `deeplight book runs/demo/book --built-in demo --real haxby`
    """
    from deeplight_core.report.book import stage

    parts = {"structural": structural, "contrast": contrast, "images": images, "comparison": comparison,
             "patients": patients}  # fmt: skip
    stage(project_root(), folder, built_in, real, reference, **parts)


def report(
    trainings: Annotated[
        list[Path], typer.Argument(help="Folders of finished fine-tunings; the first one's decoder is the study's.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    maps: Annotated[Path | None, typer.Option(help="Folder of `deeplight explain`, to show its maps.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
) -> None:
    """One self-contained page on a study: subjects, accuracies, confusions, curves, maps, other decoders, methods.

    Example: `deeplight report runs/demo/finetuning-pretrained-1-* runs/demo/finetuning-linear-1-* -o demo.html`

    With all folds of the decoders as arguments, everybody is in the table. Patients and controls are told apart if the
    profile names them (`controls.groups`) and the prepared data are at hand.
    """
    from deeplight_core.groups import report_parts
    from deeplight_core.report.plots import use_style
    from deeplight_core.report.study import study_page
    from deeplight_core.system.files import write_whole

    use_style()
    text = study_page(trainings, maps, title, report_parts(trainings[0])).encode()
    write_whole(output, lambda path: path.write_bytes(text))
    print(output)
