"""Where a dataset lies: a folder, or a URL that fsspec knows (`s3://…`), whose files are fetched when needed."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

__all__ = [
    "Stamps",
    "at_hand",
    "changed_since",
    "content",
    "in_threads",
    "is_remote",
    "located",
    "patiently",
    "refuse_escape",
    "stamps",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

Stamps = dict[str, list[float | str]]

_CHUNK = 1 << 16  # bytes hashed at the start, middle and end: all of a small file
_AT_ONCE, _AT_ONCE_LOCALLY = 16, 2  # files read at a time: latency decides, or Python, which runs in one thread
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


def in_threads(root: Any, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results of `work`, which reads small files below the root, in the order of the items."""
    with ThreadPoolExecutor(_AT_ONCE if is_remote(root) else _AT_ONCE_LOCALLY) as pool:
        return list(pool.map(work, items))


def refuse_escape(root: Any, name: str) -> None:
    """Raise ValueError if a name, or the file that it links to, leaves the root."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"{name} leaves the data root {root}; paths are relative to it and go downwards only")
    if not is_remote(root) and not (root / name).resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"{name} is a link to {(root / name).resolve()}, outside the data root {root}; "
            "copy the file into the root, or take a root that holds both"
        )


def content(path: Any) -> str:
    """A hash of a file's beginning, middle and end, and its size."""
    size = path.stat().st_size
    hashed = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for position in (0, size // 2, max(0, size - _CHUNK)):
            stream.seek(position)
            hashed.update(stream.read(_CHUNK))
    return hashed.hexdigest()


def stamps(root: Any, names: Iterable[str]) -> Stamps:
    """Size, modification time and (of local files) content of files, and of the files in folders.

    Other stamps mean another file. Names that begin with a dot are left out.
    """

    def of(name: str) -> Stamps:
        path = root / name
        files = sorted(path.iterdir(), key=str) if path.is_dir() else [path]
        found: Stamps = {}
        for file in (f for f in files if not f.name.startswith(".")):
            status = file.stat()
            hashed = [] if is_remote(root) else [content(file)[:16]]
            found[str(file.relative_to(root))] = [status.st_size, status.st_mtime, *hashed]
        return found

    return {file: stamp for name in names for file, stamp in patiently(partial(of, name), root).items()}


def changed_since(noted: Stamps, now: Stamps) -> list[str]:
    """The files whose stamps differ in size, time or content, and those that are new or gone; earlier versions noted
    no content."""
    return sorted(file for file in {*now, *noted} if now.get(file, [])[: len(noted.get(file, []))] != noted.get(file))


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
