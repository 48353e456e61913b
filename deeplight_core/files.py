"""Files that are there whole or not at all, and their checksums."""

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["file_sha256", "write_whole"]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name (`partial_…`), fsync it and rename it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"partial_{socket.gethostname()}_{os.getpid()}_{threading.get_ident()}_{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk has no name of its own
        raise OSError(error.errno, f"{error.strerror or error}; {path} was not written") from error
    finally:
        temporary.unlink(missing_ok=True)
