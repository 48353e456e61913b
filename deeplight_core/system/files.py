"""Files that appear whole or not at all, and their checksums."""

import csv
import hashlib
import os
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MISSING", "file_sha256", "pointer_of", "read_at", "read_columns", "read_table", "write_at", "write_whole"]

MISSING = ("", "n/a", "na", "nan")
"""Cells of a table that state nothing, in lower case: BIDS writes n/a, R writes NA, Python writes nan."""

_POINTERS = {  # beginnings of the small files that stand for contents that were not fetched
    rb"((\.\./)*\.git)?/annex/objects/": "git-annex (fetch it with `datalad get` or `git annex get`)",
    rb"version https://git-lfs": "Git LFS (fetch it with `git lfs pull`)",
}
_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_at(file: int, buffer: np.ndarray, position: int) -> None:
    """Fill an array from a position of an open file; a single system call may return less than asked for."""
    view = buffer.reshape(-1).view(np.uint8).data
    while view:
        if not (n := os.preadv(file, [view], position)):
            raise EOFError("the file ends too early")
        view, position = view[n:], position + n


def write_at(file: int, values: np.ndarray, position: int) -> None:
    """Write an array to a position of an open file; a full disk takes a part before it reports an error."""
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    while view:
        n = os.pwrite(file, view, position)
        view, position = view[n:], position + n


def pointer_of(beginning: bytes) -> str:
    """What a file stands for, by its beginning, if it only points to its contents (git-annex, Git LFS); else empty."""
    return next((whose for text, whose in _POINTERS.items() if re.match(text, beginning)), "")


def read_table(path: Any) -> "pd.DataFrame":
    """A table with a header, all cells as text; format and errors as `read_columns`."""
    import pandas as pd

    columns = read_columns(path)
    return pd.DataFrame(columns, columns=pd.Index([*columns], dtype=str), dtype=str)


def read_columns(path: Any) -> dict[str, list[str]]:
    """The columns of a table with a header, as text: tab-separated if its name ends in .tsv or .txt, else by commas.

    Blanks around a cell, and empty cells beyond the header, are no part of the table; a column without a name is called
    `Unnamed: <number>`, or left out if it is empty.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not such a table in UTF-8.
    """
    kind, separator = ("tab", "\t") if path.name.lower().endswith((".tsv", ".txt")) else ("comma", ",")
    what = f"{path} is not a {kind}-separated table in UTF-8"
    with path.open("rb") as stream:
        data = stream.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: {error}") from error
    if pointer := pointer_of(data):
        raise ValueError(f"{path} is only a pointer of {pointer}")
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if kind == "tab" and any("\n" in cell or "\r" in cell for cell in cells):
                raise csv.Error("a cell goes over several lines")
            if any(cell.strip() for cell in cells):
                rows.append([cell.strip() for cell in cells])
    except csv.Error as error:
        raise ValueError(
            f"{what}: {error}, in line {reader.line_num} or before it; is a quotation mark not closed?"
        ) from error
    if not rows:
        raise ValueError(f"{what}: it is empty")
    header, body = rows[0], rows[1:]
    others = [name for name, sign in _SEPARATORS.items() if sign != separator and sign in header[0]]
    if len(header) == 1 and others:
        raise ValueError(f"{what}: its columns are separated by {others[0]}s; save it anew, separated by {kind}s")
    longer = [number for number, cells in enumerate(body, start=2) if any(cells[len(header) :])]
    if longer and len(longer) < len(body):
        raise ValueError(f"{what}: line {longer[0]} has more cells than the header; is there a {kind} too many?")
    if longer:
        raise ValueError(f"{path}: rows have more cells than the header; is there a {kind} too many?")
    padded = [cells[: len(header)] + [""] * (len(header) - len(cells)) for cells in body]
    there = [i for i, name in enumerate(header) if name or any(cells[i] for cells in padded)]
    names = [header[i] or f"Unnamed: {i}" for i in there]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has several columns {', '.join(repeated)}; rename or remove all but one")
    return {name: [cells[i] for cells in padded] for name, i in zip(names, there, strict=True)}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name (`partial_…`), fsync it and rename it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"partial_{uuid4().hex}_{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, f"{error.strerror or error}; {path} was not written") from error
    finally:
        temporary.unlink(missing_ok=True)
