"""Commands that make pages."""

from pathlib import Path
from typing import Annotated

import typer

from deeplight_core.config import project_root

__all__ = ["book"]


def book(
    folder: Annotated[Path, typer.Argument(help="Folder for the book's source; replaced if it exists.")],
    built_in: Annotated[str, typer.Option(help="Profile on the built-in dataset.")] = "demo",
    real: Annotated[str, typer.Option(help="Profile on real data.")] = "haxby",
    structural: Annotated[str, typer.Option(help="Profile on structural images.")] = "autoencoder",
    contrast: Annotated[str, typer.Option(help="Profile of temporal contrast.")] = "contrast",
) -> None:
    """Put the book's pages and the executed notebooks together, for `jupyter-book build`.

    Example: `deeplight book runs/demo/book --built-in demo --real haxby`
    """
    from deeplight_core.report.book import stage

    stage(project_root(), folder, built_in, real, structural, contrast)
