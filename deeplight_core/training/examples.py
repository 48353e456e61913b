"""What is learnt from: which volumes, with which labels, of which units. Knows no torch and reads no file."""

import numpy as np
import pandas as pd

__all__ = ["draw_units", "permute_labels", "select_rows"]


def select_rows(
    index: pd.DataFrame, states: list[tuple[str, str]], split: str, units: list[str] | None = None
) -> pd.DataFrame:
    """The index rows of (task, state) pairs, a split and units, with their `label`: the position in `states`."""
    labels = pd.Series({pair: label for label, pair in enumerate(states)}, dtype="int64")
    rows = index[index["split"] == split]
    if units is not None:
        rows = rows[rows["unit"].isin(units)]
    label = labels.reindex(pd.MultiIndex.from_frame(rows[["task", "state"]])).to_numpy()
    rows = rows.assign(label=label).dropna(subset="label").astype({"label": "int64"}).reset_index(drop=True)
    if rows.empty:
        of_units = f" for {units}" if units else ""
        raise ValueError(f"the store has no {split} volumes of {sorted({t for t, _ in states})}{of_units}")
    return rows


def draw_units(units: list[str], fraction: float, seed: int) -> list[str]:
    """A seeded fraction of the units, at least one; smaller fractions are subsets of larger ones."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}; 0.05 means 5% of the training units")
    order = np.random.default_rng([seed, 0xF2AC]).permutation(sorted(units))
    return [str(u) for u in order[: max(1, int(fraction * len(units) + 0.5))]]


def permute_labels(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows with their `label` in random order within each run: as frequent as before, and without meaning."""
    random = np.random.default_rng([seed, 0x9E12])
    return rows.assign(label=rows.groupby("file", sort=False)["label"].transform(random.permutation))
