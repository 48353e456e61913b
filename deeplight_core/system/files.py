"""Files that appear whole or not at all, and their checksums."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["file_sha256", "read_at", "read_table", "write_at", "write_whole"]


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


def read_table(path: Any) -> "pd.DataFrame":
    """A table with a header, all cells as text: tab-separated if the name ends in .tsv or .txt, else comma-separated.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not such a table in UTF-8.
    """
    import pandas as pd

    kind, separator = ("tab", "\t") if path.name.lower().endswith((".tsv", ".txt")) else ("comma", ",")
    try:
        with path.open("rb") as stream:
            table = pd.read_csv(stream, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a {kind}-separated table in UTF-8: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{path}: rows have more cells than the header; is there a {kind} too many?")
    return table


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
