from pathlib import Path

import pandas as pd
import pytest
import yaml

from deeplight_core.config import Profile
from deeplight_core.data.labels import alike, check_labels, count_labels, label_table, losses, remedy
from deeplight_core.data.manifest import COLUMNS

FACES = "onset\tduration\ttrial_type\n0\t10\tface\n14\t10\thouse\n28\t10\tface\n42\t10\thouse\n56\t4\tface\n"
SPLITS = {"01": "train", "02": "train", "03": "validation"}


def study(root: Path, n_volumes: int = 40, **texts: str) -> pd.DataFrame:
    """The manifest of three runs without images, TR 2 s; `texts` (s01=…) replaces a subject's events."""
    rows = []
    for subject, split in SPLITS.items():
        (root / f"{subject}.tsv").write_text(texts.get(f"s{subject}", FACES))
        rows.append(["mine", subject, "", "loc", "1", f"{subject}.nii.gz", f"{subject}.tsv", "", 2.0, n_volumes, split,
                     "", ""])  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def profile(root: Path, states: list[str], target: list[str] | None = None, **preprocessing: object) -> Profile:
    data = {
        "root": str(root),
        "layout": "bids",
        "source": {"loc": states},
        "target": {"loc2": target} if target else {},
    }
    return Profile.model_validate({"name": "mine", "data": data, "preprocessing": preprocessing})


def test_events_and_volumes_of_every_state_and_split(tmp_path: Path) -> None:
    table = check_labels(study(tmp_path), profile(tmp_path, ["face", "house"]))
    assert table.drop(columns="shared").reset_index().to_numpy().tolist() == [
        ["loc", "face", 9, 3, 12, 6], ["loc", "house", 6, 0, 12, 6],
    ]  # fmt: skip
    assert losses(table) == losses(table.drop(columns="shared")) == ["loc: 3 of 9 events of face keep no volume (33%)"]
    assert remedy(profile(tmp_path, ["face"]).preprocessing, table).startswith(
        "more than 20% of a state's events are lost: take one example per trial"
    )
    longer = check_labels(study(tmp_path), profile(tmp_path, ["face", "house"], skip_s=0, lag_s=4))
    assert longer["without"].tolist() == [0, 0]
    assert losses(longer) == losses(pd.DataFrame()) == []


def test_a_state_without_events_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no event of hause \(state hause\) in any run; its events are face \(9\), "
                                         r"house \(6\); is house meant\?"):  # fmt: skip
        check_labels(study(tmp_path), profile(tmp_path, ["face", "hause"]))
    with pytest.raises(ValueError, match=r"no event of tool .*its events are face \(9\), house \(6\)$"):
        check_labels(study(tmp_path), profile(tmp_path, ["face", "tool"]))


def test_an_event_of_a_pooled_state_that_no_run_has_is_named(tmp_path: Path) -> None:
    pooled = profile(tmp_path, ["face"])
    pooled.data.source["loc"] = {"face": ["face", "hause"], "other": ["house"]}
    with pytest.raises(ValueError, match=r"^1 problem.*\n.*no event of hause \(state face\) in any run; its events are "
                                         r"face \(9\), other \(6\)$"):  # fmt: skip
        check_labels(study(tmp_path), pooled)
    some = study(tmp_path, s01=FACES.replace("house", "hause"))  # a name that one run has is no mistake
    assert check_labels(some, pooled)["events"].tolist() == [11, 4]


def test_states_that_are_all_misspelt_are_named_and_not_their_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)^2 problem.*no event of Face .*; is face meant\?.*is house meant\?$"):
        check_labels(study(tmp_path), profile(tmp_path, ["Face", "House"]))
    odd = FACES.replace("face", "12:30").replace("house", "010")
    manifest = study(tmp_path, s01=odd, s02=odd, s03=odd)
    with pytest.raises(ValueError, match=r"no event of 750 .*; YAML reads 010 as 8 and 12:30 as 750: put such names"):
        check_labels(manifest, profile(tmp_path, yaml.safe_load("[12:30, '010']")))


def test_events_that_two_states_share_are_said(tmp_path: Path) -> None:
    both = FACES + "15\t9\tface\n43\t9\tface\n"  # house's two blocks are face's, too
    own = profile(tmp_path, ["face", "house"], skip_s=0)
    counts, _ = count_labels(study(tmp_path, s01=both, s02=both, s03=both), own)
    table = label_table(counts)
    assert table["shared"].tolist() == [6, 6]
    assert losses(table) == [
        "loc: 6 of 15 events of face keep no volume (40%), and 6 are at the same time as events of another state"
    ]
    assert "; volumes in events of two states are left out: name only one" in remedy(own.preprocessing, table)
    trials = own.overridden({"preprocessing": {"example": {"kind": "window"}}})
    beside = label_table(count_labels(study(tmp_path, s01=both, s02=both, s03=both), trials)[0])
    assert beside["shared"].tolist() == [0, 0]  # these begin one after the other
    both = FACES + "14\t9\tface\n"
    together = label_table(count_labels(study(tmp_path, s01=both, s02=both, s03=both), trials)[0])
    assert together["shared"].tolist() == together["without"].tolist() == [3, 3]
    assert "; trials of two states that begin together are left out" in remedy(trials.preprocessing, together)


def test_a_class_without_volumes_is_refused_with_counts(tmp_path: Path) -> None:
    trials = "onset\tduration\ttrial_type\n" + "".join(f"{4 * i}\t1\t{'ab'[i % 2]}\n" for i in range(10))
    with pytest.raises(ValueError, match=r"(?s)no volume of any run lies in a block.*state a has 15 events, and none"):
        check_labels(study(tmp_path, s01=trials, s02=trials, s03=trials), profile(tmp_path, ["a", "b"]))
    lone = FACES.replace("house", "other")
    with pytest.raises(ValueError, match=r"house has no volume in split validation \(12 in train, 0 in validation\)"):
        check_labels(study(tmp_path, s03=lone), profile(tmp_path, ["face", "house"]))
    with pytest.raises(ValueError, match=r"house has no volume in split train \(0 in train, 6 in validation\)"):
        check_labels(study(tmp_path, s01=lone, s02=lone), profile(tmp_path, ["face", "house"]))


def test_folds_draw_their_own_splits(tmp_path: Path) -> None:
    manifest, own = study(tmp_path, s03=FACES.replace("house", "other")), profile(tmp_path, ["face", "house"])
    folds = own.overridden({"sweep": {"folds": 3}})
    assert check_labels(manifest, folds).at[("loc", "house"), "validation"] == 0


def test_a_single_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.source has a single state, face of loc, .* of loc: house \(6\)\)"):
        check_labels(study(tmp_path), profile(tmp_path, ["face"]))


def test_runs_with_unusable_events_are_named_together_or_ignored(tmp_path: Path) -> None:
    ms = FACES.replace("\t10\t", "\t10000\t").replace("\n14", "\n14000").replace("\n28", "\n28000")
    manifest = study(tmp_path, s01="onset\tduration\ttrial_type\n0\t3\trest\n", s02=ms)
    own = profile(tmp_path, ["face", "house"])
    with pytest.raises(ValueError, match=r"(?s)01.tsv has no event of face, house; it has rest.*02.tsv: .* millisec"):
        check_labels(manifest, own)
    with pytest.raises(ValueError, match=r"house has no volume in split train"):  # the others are counted
        check_labels(manifest, own, keep_going=True)
    assert set(count_labels(manifest, own)[1]) == {"01.nii.gz", "02.nii.gz"}


def test_a_run_that_starts_later_ends_later(tmp_path: Path) -> None:
    late = "onset\tduration\ttrial_type\n81\t1\tface\n82\t1\thouse\n"
    manifest = study(tmp_path, s01=late, s02=late, s03=late)
    own = profile(tmp_path, ["face", "house"])
    assert len(count_labels(manifest, own)[1]) == 3  # the runs last 80 s
    assert count_labels(manifest.assign(start_s="5"), own)[1] == {}


def test_states_that_may_be_one_are_named(tmp_path: Path) -> None:
    text = "onset\tduration\ttrial_type\n0\t10\t1\n14\t10\t1.0\n28\t10\tFace\n42\t10\tface\n56\t10\thouse\n"
    counts, _ = count_labels(
        study(tmp_path, s01=text, s02=text, s03=text), profile(tmp_path, ["1", "1.0", "Face", "face", "house"])
    )
    assert [line.split("?")[0] for line in alike(label_table(counts))] == [
        "loc: are 1 and 1.0 one and the same state", "loc: are Face and face one and the same state",
    ]  # fmt: skip
