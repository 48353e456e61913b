"""Where a checkpoint lies: a folder, or a repository of the Hugging Face hub, pinned to a revision.

Files of the hub are fetched into a cache by the four names that an exported checkpoint has, whatever else there is.
"""

import re
from pathlib import Path
from typing import Any

from deeplight_core.system.hub import COMMIT, NAME, asked, client, fetched
from deeplight_core.training.checkpoint import LARGEST_RECORD, LARGEST_WEIGHTS, load_mask, load_model

__all__ = ["FILES", "local", "push"]

FILES = {
    "README.md": 1 << 20,
    "mask.nii.gz": 1 << 26,
    "model.safetensors": LARGEST_WEIGHTS,
    "model.json": LARGEST_RECORD,
}
"""Names of an exported checkpoint's files, with the most bytes that each may have; the record comes last."""
_NAMED = re.compile(rf"(?:hub:)?({NAME})(?:@(.+))?")


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
    named = _NAMED.fullmatch(str(checkpoint))
    if named is None or ".." in str(checkpoint):
        raise ValueError(f"there is no checkpoint {checkpoint}: neither such a folder nor ORG/NAME@REVISION of the hub")
    name, revision = named.groups()
    if revision is None or not re.fullmatch(COMMIT, revision):
        newest = asked(name, lambda hub: client(hub).model_info(name, revision=revision).sha)
        raise ValueError(
            f"{checkpoint} is not pinned: what it names can change. {revision or 'The newest revision'} is now "
            f"{name}@{str(newest)[:40]}; give this name"
        )
    return fetched(name, revision, FILES)


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported checkpoint to a repository of the hub, which is made if it does not exist.

    Returns
    -------
    ORG/NAME@REVISION of what was uploaded

    Raises
    ------
    ValueError
        If it is no whole exported checkpoint, names subjects, its weights may not be passed on, or the hub refuses.
    """
    if not _NAMED.fullmatch(name) or "@" in name or ".." in name:
        raise ValueError(f"a repository is named ORG/NAME, got {name}")
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ValueError(f"{folder} is no exported checkpoint (without {', '.join(missing)}); use `deeplight export`")
    if links := [file for file in FILES if (folder / file).is_symlink()]:
        raise ValueError(f"{folder} has links in the place of files ({', '.join(links)}): they are not sent")
    record = load_model(folder)[1]
    load_mask(folder, record)
    if {"units", "reported"} & {*record["training"]}:
        raise ValueError(f"{folder} is a training folder, whose record names subjects; use `deeplight export` first")
    source = record.get("source") or {}
    if source.get("redistributable") is False:
        raise ValueError(
            f"{folder} holds weights of {source.get('title', 'others')}, whose authors state no licence that would "
            "allow passing them on; others can make the same folder with `deeplight import`"
        )

    def upload(hub: Any) -> str:
        api = client(hub)
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="Checkpoint of deeplight-core"
        )
        return f"{name}@{done.oid}"

    return str(asked(name, upload))
