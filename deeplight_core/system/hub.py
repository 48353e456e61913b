"""Files of a repository of the Hugging Face hub at one commit, none larger than it may be.

Tokens are the business of huggingface_hub (`hf auth login`, `HF_TOKEN`).
"""

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["COMMIT", "NAME", "asked", "client", "fetched"]

NAME = r"[A-Za-z0-9][\w-]*(?:\.[\w-]+)*/[A-Za-z0-9][\w-]*(?:\.[\w-]+)*"
"""What the name of a repository looks like: ORG/NAME."""
COMMIT = r"[0-9a-f]{40}"
"""What pins a revision: names of branches and tags move."""


def fetched(name: str, revision: str, files: dict[str, int]) -> Path:
    """The folder of a cache that holds these files of a repository, from the hub where it lacks them.

    Parameters
    ----------
    revision : a commit's 40 digits
    files : name → the most bytes it may have

    Raises
    ------
    ValueError
        If there is no such repository, revision or file, the hub cannot be reached, or a file is too large.
    """
    folder = Path(_package().constants.HF_HOME) / "deeplight" / name.replace("/", "--") / revision
    missing = {file: most for file, most in files.items() if not (folder / file).is_file()}
    for file, most in missing.items():
        asked(name, partial(_fetch, name=name, revision=revision, file=file, most=most, folder=folder))
    if missing:
        shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


def _fetch(hub: Any, name: str, revision: str, file: str, most: int, folder: Path) -> None:
    api = client(hub)
    about = api.get_hf_file_metadata(url=hub.hf_hub_url(name, file, revision=revision, endpoint=api.endpoint))
    if about.commit_hash != revision or not re.fullmatch(r"[\w.-]+", about.etag or "") or ".." in about.etag:
        raise ValueError(f"the hub answers for another revision than {name}@{revision}, or not as it should; try again")
    if about.size is None or about.size > most:
        raise ValueError(f"{file} of {name}@{revision} has {about.size} bytes; it may have no more than {most:,}")
    api.hf_hub_download(name, file, revision=revision, local_dir=folder)
    if (folder / file).stat().st_size != about.size:
        (folder / file).unlink()
        raise ValueError(f"{file} of {name}@{revision} came incomplete; try again")


def client(hub: Any) -> Any:
    """What asks the hub that the environment names."""
    return hub.HfApi(endpoint=hub.constants.ENDPOINT)


def asked(name: str, ask: Callable[[Any], Any]) -> Any:
    """What `ask` gets from the package huggingface_hub; errors as a ValueError of one line, without what was sent."""
    hub = _package()
    try:
        return ask(hub)
    except hub.errors.RepositoryNotFoundError:
        raise ValueError(
            f"the hub has no repository {name} that you may read; correct the name, or log in with `hf auth login`"
        ) from None
    except (hub.errors.RevisionNotFoundError, hub.errors.EntryNotFoundError) as error:
        raise ValueError(f"{name} has no such revision, or lacks a file: {_line(error)}") from None
    except ValueError:
        raise
    except Exception as error:  # of whichever client the package uses
        raise ValueError(f"the hub could not be asked about {name}, check the network: {_line(error)}") from None


def _package() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise ValueError(
            "the hub needs the package huggingface_hub, which is not installed: pip install 'deeplight-core[hub]'"
        ) from None
    return huggingface_hub


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
