"""Where a checkpoint lies: a folder, or a repository of the Hugging Face hub, pinned to a revision.

Files of the hub are fetched into a cache by the four names that an exported checkpoint has, whatever else there is.
Tokens are the business of huggingface_hub (`hf auth login`, `HF_TOKEN`).
"""

import re
import shutil
from pathlib import Path
from typing import Any

from deeplight_core.training.checkpoint import LARGEST_RECORD, LARGEST_WEIGHTS, read_record

__all__ = ["FILES", "local", "push"]

FILES = {
    "README.md": 1 << 20,
    "mask.nii.gz": 1 << 26,
    "model.safetensors": LARGEST_WEIGHTS,
    "model.json": LARGEST_RECORD,
}
"""Names of an exported checkpoint's files, with the most bytes that each may have; the record comes last."""
_NAME = re.compile(r"(?:hub:)?([A-Za-z0-9][\w-]*(?:\.[\w-]+)*/[A-Za-z0-9][\w-]*(?:\.[\w-]+)*)(?:@(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTALL = "pip install 'deeplight-core[hub]'"


def local(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint, which is given as its folder or as ORG/NAME@REVISION of the hub.

    A revision is a commit's 40 digits: names of branches and tags move. Without one, the hub is asked for the newest.

    Raises
    ------
    ValueError
        If there is no such folder or repository, the revision is not pinned, the hub cannot be reached, or a file there
        is larger than any of its kind.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder.absolute()
    named = _NAME.fullmatch(str(checkpoint))
    if named is None or ".." in str(checkpoint):
        raise ValueError(f"there is no checkpoint {checkpoint}: neither such a folder nor ORG/NAME@REVISION of the hub")
    name, revision = named.groups()
    if revision is None or not _COMMIT.fullmatch(revision):
        newest = _asked(name, lambda hub: _api(hub).model_info(name, revision=revision).sha)
        raise ValueError(
            f"{checkpoint} is not pinned: what it names can change. {revision or 'The newest revision'} is now "
            f"{name}@{str(newest)[:40]}; give this name"
        )
    return _fetched(name, revision)


def _fetched(name: str, revision: str) -> Path:
    hub = _hub()
    folder = Path(hub.constants.HF_HOME) / "deeplight" / name.replace("/", "--") / revision
    if (folder / "model.json").is_file():
        return folder
    for file, most in FILES.items():
        _asked(name, lambda hub, file=file, most=most: _fetch(hub, name, revision, file, most, folder))
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


def _fetch(hub: Any, name: str, revision: str, file: str, most: int, folder: Path) -> None:
    api = _api(hub)
    about = api.get_hf_file_metadata(url=hub.hf_hub_url(name, file, revision=revision, endpoint=api.endpoint))
    if about.commit_hash != revision or not re.fullmatch(r"[\w.-]+", about.etag or "") or ".." in about.etag:
        raise ValueError(f"the hub answers for another revision than {name}@{revision}, or not as it should; try again")
    if about.size is None or about.size > most:
        raise ValueError(f"{file} of {name}@{revision} has {about.size} bytes; no checkpoint has more than {most:,}")
    api.hf_hub_download(name, file, revision=revision, local_dir=folder)
    if (folder / file).stat().st_size != about.size:
        (folder / file).unlink()
        raise ValueError(f"{file} of {name}@{revision} came incomplete; try again")


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported checkpoint to a repository of the hub, which is made if it does not exist.

    Returns
    -------
    ORG/NAME@REVISION of what was uploaded

    Raises
    ------
    ValueError
        If it is no exported checkpoint, its weights may not be passed on, or the hub refuses.
    """
    if not _NAME.fullmatch(name) or "@" in name or ".." in name:
        raise ValueError(f"a repository is named ORG/NAME, got {name}")
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ValueError(f"{folder} is no exported checkpoint (without {', '.join(missing)}); use `deeplight export`")
    source = read_record(folder).get("source") or {}
    if source.get("redistributable") is False:
        raise ValueError(
            f"{folder} holds weights of {source.get('title', 'others')}, whose authors state no licence that would "
            "allow passing them on; others can make the same folder with `deeplight import`"
        )

    def upload(hub: Any) -> str:
        api = _api(hub)
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="Checkpoint of deeplight-core"
        )
        return f"{name}@{done.oid}"

    return str(_asked(name, upload))


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise ValueError(f"the hub needs the package huggingface_hub: {_INSTALL}") from None
    return huggingface_hub


def _api(hub: Any) -> Any:
    return hub.HfApi(endpoint=hub.constants.ENDPOINT)


def _asked(name: str, ask: Any) -> Any:
    """What the hub answers; its errors in one line, without what was sent."""
    hub = _hub()
    try:
        return ask(hub)
    except hub.errors.RepositoryNotFoundError:
        raise ValueError(
            f"the hub has no repository {name} that you may read; correct the name, or log in with `hf auth login`"
        ) from None
    except (hub.errors.RevisionNotFoundError, hub.errors.EntryNotFoundError) as error:
        raise ValueError(f"{name} has no such revision, or is no checkpoint: {_line(error)}") from None
    except ValueError:
        raise
    except Exception as error:  # of whichever client the hub's package uses
        raise ValueError(f"the hub could not be asked about {name}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
