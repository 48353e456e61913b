"""Splits with a single state."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from deeplight_core.config import Profile
from deeplight_core.training.splits import Splits

STATES = {"T1w": {"ill": ["AD"], "well": ["CN"]}}


def splits(states: str, n_train: int, **sections: Any) -> Splits:
    """Splits of people whose states are i (ill) or w (well); the first `n_train` are to train on."""
    names = {"i": "ill", "w": "well"}
    index = pd.DataFrame(
        {"unit": [f"p{n}" for n in range(len(states))], "family": "", "task": "T1w", "file": "f",
         "state": [names[s] for s in states],
         "split": ["train" if n < n_train else "validation" for n in range(len(states))]}
    )  # fmt: skip
    data = {"label": "diagnosis", "source": {}, "target": STATES}
    profile = Profile.model_validate({"name": "some", "data": data, **sections})
    store: Any = SimpleNamespace(index=index, statistics=lambda: None, is_structural=True)
    return Splits(profile, store)


def test_both_states_in_both_splits_are_right() -> None:
    assert splits("iwiwiw", 4).of("target", 0).train == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ("iiiiiw", r"the 4 training subject\(s\) hold one state only, T1w: ill; divide them anew"),
        ("iwiwww", r"the 2 held-out subject\(s\) hold one state only, T1w: well; divide them anew"),
    ],
)
def test_a_split_with_one_state_is_refused(states: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splits(states, 4).of("target", 0)


def test_a_fold_with_one_state_is_refused() -> None:
    alone = splits("iiiwww", 4, sweep={"folds": 6})
    with pytest.raises(ValueError, match="3 units of ill cannot make 6 folds; ask for fewer"):
        alone.of("target", 3)


def test_reconstruction_needs_no_states() -> None:
    assert len(splits("iiiiii", 4).of("target", 0, unlabelled=True).train) == 4
