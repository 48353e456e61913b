"""Where a dataset lies: a folder, or a URL that fsspec knows (`s3://…`), whose files are fetched when needed."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

__all__ = ["at_hand", "is_remote", "located", "patiently", "refuse_escape", "stamps"]

Result = TypeVar("Result")

_TRIES = 4
_PAUSE_S = 0.5  # before the second try; doubles


def located(text: str | Path) -> Any:
    """The root as a path: `pathlib.Path` of a folder, `upath.UPath` (with the same methods) of a URL.

    Raises
    ------
    ValueError
        If no installed package reads such URLs.
    """
    if "://" not in str(text):
        return Path(text)
    from upath import UPath

    try:
        root = UPath(str(text))
        root.fs  # noqa: B018  finds the package that reads such URLs
    except (ImportError, ValueError) as error:
        raise ValueError(f"{text} cannot be read: {error} (for S3: pip install 'deeplight-core[s3]')") from None
    return root


def is_remote(root: Any) -> bool:
    """Whether files must be fetched before they are read."""
    return not isinstance(root, Path)


def refuse_escape(root: Any, name: str) -> None:
    """Raise ValueError if a name, or the file that it links to, leaves the root."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"{name} leaves the data root {root}; paths are relative to it and go downwards only")
    if not is_remote(root) and not (root / name).resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"{name} is a link to {(root / name).resolve()}, outside the data root {root}; "
            "copy the file into the root, or take a root that holds both"
        )


def stamps(root: Any, names: Iterable[str]) -> dict[str, list[float]]:
    """Size and modification time of files, and of the files in folders: other numbers mean another file."""

    def of(name: str) -> dict[str, list[float]]:
        path = root / name
        files = sorted(path.iterdir(), key=str) if path.is_dir() else [path]
        return {str(f.relative_to(root)): [(status := f.stat()).st_size, status.st_mtime] for f in files}

    return {file: stamp for name in names for file, stamp in patiently(partial(of, name), root).items()}


@contextmanager
def at_hand(root: Any, names: Iterable[str], scratch: Path | None) -> Iterator[Path]:
    """A folder to read files (and whole folders) of the root from: the root itself, or a folder of temporary copies.

    Parameters
    ----------
    scratch : folder for the copies (None: the system's temporary folder)

    Raises
    ------
    ValueError
        If a remote file is missing, or incomplete after several tries.
    """
    if not is_remote(root):
        yield root
        return
    with TemporaryDirectory(prefix="fetched_", dir=scratch) as folder:
        for name in names:
            source = root / name
            for file in source.iterdir() if source.is_dir() else [source]:
                _fetch(file, Path(folder) / str(file.relative_to(root)))
        yield Path(folder)


def _fetch(source: Any, target: Path) -> None:
    def fetch() -> None:
        expected = source.stat().st_size
        source.fs.get_file(source.path, str(target))
        if target.stat().st_size != expected:
            raise EOFError(f"got {target.stat().st_size} of {expected} bytes")

    target.parent.mkdir(parents=True, exist_ok=True)
    patiently(fetch, source)


def patiently(work: Callable[[], Result], source: Any) -> Result:
    """The result of some work on a file; with a remote file, retried when the connection breaks.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If all tries fail.
    """
    for n_before in range(_TRIES if is_remote(source) else 0):
        try:
            return work()
        except (FileNotFoundError, ValueError):  # trying again would not help
            raise
        except Exception as error:  # each of fsspec's file systems has errors of its own
            if n_before == _TRIES - 1:
                raise ValueError(
                    f"{source} could not be read in {_TRIES} tries ({error}); run the same command to try again"
                ) from error
        time.sleep(_PAUSE_S * 2**n_before)
    return work()
