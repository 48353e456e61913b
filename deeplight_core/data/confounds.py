"""fMRIPrep's confounds of a run: the files beside its image, read by nilearn's strategies.

Letters: T frames of the run, K of them not censored, C regressors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplight_core.preparation import ConfoundSettings
from deeplight_core.system.files import MISSING, read_columns, read_table
from deeplight_core.system.sources import is_remote

__all__ = ["Confounds", "confound_files", "read_confounds"]

_KINDS = ("timeseries", "regressors")  # fMRIPrep's suffixes, of now and of before version 20.2
_AROMA = "smoothAROMAnonaggr"


@dataclass(frozen=True)
class Confounds:
    """What is to be done about the motion of a run, and how much there was.

    regressors : (T, C); C is 0 unless the settings name a strategy with regressors
    kept : (K,) the frames that are not censored, ascending; all of them unless the settings name a strategy
    n_unsteady : volumes before the scanner's steady state, whether they are censored or not
    mean_fd_mm : framewise displacement (Power et al. 2012), averaged over the run's frames; None if not stated
    """

    regressors: np.ndarray
    kept: np.ndarray
    n_unsteady: int
    mean_fd_mm: float | None


def confound_files(root: Any, image: str) -> list[str]:
    """The files of fMRIPrep's confounds that belong to an image, relative to the root: a table and its description.

    They lie beside it, below the root, and all their entities but `desc` are the image's. Images without a `desc` have
    none.

    Parameters
    ----------
    root : folder or URL
    image : relative to the root
    """
    path = root / image
    own = _entities(path.name)
    if "desc" not in own or not path.parent.is_dir():
        return []
    found = []
    for table in sorted(path.parent.glob("*desc-confounds_*.tsv"), key=str):
        its = _entities(table.name)
        if its.pop("desc", "") == "confounds" and its.items() <= own.items() and table.stem.endswith(_KINDS):
            found += [file for file in (table, table.with_suffix(".json")) if file.is_file() and _is_inside(root, file)]
    return [str(file.relative_to(root)) for file in found]


def _is_inside(root: Any, file: Any) -> bool:
    return is_remote(root) or file.resolve().is_relative_to(root.resolve())


def _entities(name: str) -> dict[str, str]:
    return dict(part.split("-", 1) for part in name.split(".")[0].split("_") if "-" in part)


def read_confounds(
    folder: Path, files: list[str], image: str, n_frames: int, settings: ConfoundSettings
) -> Confounds | None:
    """The confounds of a run, by `nilearn.interfaces.fmriprep.load_confounds`; None if it has no file of them.

    Without a strategy, a file that cannot be used counts as none.

    Volumes before the steady state are censored with every strategy. A regressor that is not stated in the first frame
    (a derivative) takes the second one's value there, as in nilearn.

    Parameters
    ----------
    files : as `confound_files` gives them, below the folder

    Raises
    ------
    ValueError
        If the settings name a strategy and there is no file, or it lacks what the strategy needs, does not fit the run,
        holds values that are not stated (n/a) in frames that are not censored, or all frames are censored.
    """
    import pandas as pd

    tables = [name for name in files if name.endswith(".tsv")]
    if len(tables) != 1:
        if not settings.strategy:
            return None
        there = f"{len(tables)} of them: {', '.join(tables)}" if tables else "none"
        raise ValueError(
            f"{image}: preprocessing.confounds needs one file of fMRIPrep's confounds beside it "
            f"(…_desc-confounds_timeseries.tsv, with the image's sub, ses, task and run), and finds {there}; take "
            "the images of `deeplight manifest --derivatives`, or name no strategy"
        )
    path = folder / tables[0]
    try:
        raw = read_table(path)
    except ValueError:
        if not settings.strategy:
            return None
        raise
    if len(raw) != n_frames:
        if not settings.strategy:
            return None
        raise ValueError(f"{path} has {len(raw)} rows, and its run {n_frames} volumes; compute it anew, or correct it")
    unsteady = [column for column in raw if str(column).startswith("non_steady_state")]
    mean_fd_mm = _mean(raw.get("framewise_displacement"))
    if not settings.strategy:
        return Confounds(np.empty((n_frames, 0)), np.arange(n_frames), len(unsteady), mean_fd_mm)
    table, kept = _by_nilearn(path, image, n_frames, settings)
    if len(kept) < 3:
        raise ValueError(
            f"{path}: {len(kept)} of {n_frames} volumes are left after censoring; raise fd_threshold and "
            "std_dvars_threshold, or leave the run out"
        )
    numbers = table.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    unstated = numbers.isna()
    if (bad := unstated.iloc[kept].to_numpy()).any():
        columns = ", ".join(map(str, table.columns[bad.any(axis=0)][:5]))
        what = "n/a" if table.isna().iloc[kept].to_numpy()[bad].all() else "no finite number"
        rows = ", ".join(str(kept[i] + 2) for i in np.flatnonzero(bad.any(axis=1))[:5])
        raise ValueError(
            f"{path}: {what} in {columns} (row {rows}), in volumes that are not censored; name a strategy without "
            "them, or repair the file"
        )
    filled = numbers.ffill().bfill()  # in censored frames only, which do not count
    return Confounds(filled.to_numpy(float).reshape(n_frames, -1), kept, len(unsteady), mean_fd_mm)


def _mean(column: Any) -> float | None:
    """The mean of a column of texts; None if there is no number in it."""
    import pandas as pd

    if column is None:
        return None
    numbers = pd.to_numeric(column, errors="coerce").replace([np.inf, -np.inf], np.nan).dropna()
    return float(numbers.mean()) if len(numbers) else None


def _no_number(path: Path) -> str:
    """Where a file of confounds holds a text that is no number, in words; empty if nowhere."""
    for column, cells in read_columns(path).items():
        for row, cell in enumerate(cells, start=2):
            try:
                float(0 if cell.lower() in MISSING else cell)
            except ValueError:
                point = "; decimals have a point, not a comma" if "," in cell else ""
                return f"row {row}: {column} {cell!r} is not a number{point}"
    return ""


def _by_nilearn(path: Path, image: str, n_frames: int, settings: ConfoundSettings) -> tuple[Any, np.ndarray]:
    """The regressors and the frames that are not censored."""
    import warnings

    import pandas as pd
    from nilearn.interfaces.fmriprep import load_confounds

    strategy = [name for name in settings.strategy if name != "non_steady_state"]
    aroma = "ica_aroma" in strategy and settings.ica_aroma == "full"
    if aroma and _entities(Path(image).name)["desc"] != _AROMA:
        raise ValueError(
            f"{image}: preprocessing.confounds.ica_aroma: full means images that ICA-AROMA has cleaned "
            f"(desc-{_AROMA}); list those in the manifest, or set it to basic"
        )
    stem = path.name.split("desc-confounds")[0]  # nilearn knows images by their names only
    named = path.with_name(f"{stem}desc-{_AROMA if aroma else 'preproc'}_bold.nii.gz")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "strategy is empty")
            warnings.filterwarnings("ignore", "All volumes were marked")
            table, kept = load_confounds(
                str(named), strategy=strategy, demean=False, motion=settings.motion, wm_csf=settings.wm_csf,
                global_signal=settings.global_signal, compcor=settings.compcor, n_compcor=settings.n_compcor,
                ica_aroma=settings.ica_aroma, scrub=settings.scrub, fd_threshold=settings.fd_threshold,
                std_dvars_threshold=settings.std_dvars_threshold,
            )  # fmt: skip
    except (ValueError, KeyError, IndexError, TypeError) as error:
        said = f"it has no column {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        said = _no_number(path) or said
        asked = ", ".join(settings.strategy)
        raise ValueError(f"{path}: {said} (preprocessing.confounds.strategy: {asked})") from error
    table = pd.DataFrame(index=range(n_frames)) if table is None else table.reindex(range(n_frames))
    return table, np.arange(n_frames) if kept is None else np.asarray(kept)
