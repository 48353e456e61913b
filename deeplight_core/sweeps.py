"""Which trainings each page of the book looks at: the sweep of the paper, and the controls."""

from typing import NamedTuple

import numpy as np

from deeplight_core.config import Profile
from deeplight_core.routes import VARIANTS

__all__ = ["CONTROLS", "Cell", "planned"]

CONTROLS = ("baselines", "initialisation", "permutation", "tasks", "seeds")
_DEEP = ["pretrained", "scratch"]


class Cell(NamedTuple):
    """One fine-tuning.

    `target` is a task that takes the place of the profile's target states, or empty; `fold` is 0 for the manifest's own
    split, or counts the folds of cross-validation from 1.
    """

    target: str
    variant: str
    fraction: float
    seed: int
    fold: int = 0

    @property
    def name(self) -> str:
        """A name for files."""
        fraction = np.format_float_positional(self.fraction, trim="-")  # all digits: names are read back
        fold = f"fold{self.fold}" if self.fold else ""
        return "-".join(filter(None, [self.target, self.variant, fraction, f"seed{self.seed}", fold]))

    @property
    def pretraining(self) -> tuple[str, str, int, int] | None:
        """Route, target, seed and fold of the pre-training that it starts from; None if it starts from none."""
        variant = VARIANTS[self.variant]
        return None if variant.start == "random" else (variant.route, self.target, self.seed, self.fold)


def planned(profile: Profile, name: str) -> list[Cell]:
    """The trainings of the sweep (`name="sweep"`), or of a control together with those that it is compared with."""
    sweep, controls = profile.sweep, profile.controls
    variants, fractions, seeds, targets = sweep.variants, sweep.fractions, sweep.seeds[:1], [""]
    folds = range(1, sweep.folds * sweep.repeats + 1) if sweep.folds else range(1)
    if name == "sweep":
        seeds = sweep.seeds
    elif name == "baselines":
        variants = _DEEP + controls.baselines
    elif name == "initialisation":
        repeated = profile.routes.supervised.encoder.initialisation  # from scratch with the profile's own
        variants = _DEEP + [v for v in controls.initialisation if VARIANTS[v].initialisation != repeated]
    elif name == "permutation":
        variants, fractions = controls.permutation, controls.fractions
    elif name == "tasks":
        variants, fractions = _DEEP, controls.fractions
        targets = ["" if [task] == profile.data.tasks("target") else task for task in profile.tasks_to_leave_out]
    elif name == "seeds":
        variants, fractions, seeds = _DEEP, controls.fractions, [*sweep.seeds, *controls.seeds]
    else:
        raise ValueError(f"there is no sweep {name!r}; there are sweep, {', '.join(CONTROLS)}")
    cells = (Cell(t, v, f, s, k) for t in targets for s in seeds for k in folds for v in variants for f in fractions)
    return list(dict.fromkeys(cells))
