from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deeplight_core.data.manifest import (
    COLUMNS,
    add_subject_columns,
    assign_splits,
    is_structural,
    read_left_out,
    read_manifest,
    read_notes,
    run_key,
    select,
    unit_names,
    write_manifest,
    write_notes,
)
from deeplight_core.data.simulate import plan
from deeplight_core.preparation import DataSettings

COMMITTED = Path(__file__).parents[2] / "data_manifest.csv"


@pytest.fixture
def table() -> pd.DataFrame:
    """Seven tasks of sim001 (rows 2–8), sim002 (9–15), both to train on, and sim003 (16–22) to validate."""
    return plan(2, 1, 2.16, ("LR",))


def changed(table: pd.DataFrame, cells: dict[tuple[int, str], object], folder: Path) -> Path:
    """Write the table with other values in cells (row of the file, column)."""
    table = table.astype(object)
    for (row, column), value in cells.items():
        table.loc[row - 2, column] = value
    write_manifest(table, folder / "manifest.csv")
    return folder / "manifest.csv"


def test_write_and_read_give_back_the_same(table: pd.DataFrame, tmp_path: Path) -> None:
    table = table.assign(age=[f"{n}" for n in range(len(table))], sha256="0a" * 32)  # a free label column
    write_manifest(table[["age", *COLUMNS]], tmp_path / "new/manifest.csv")
    back = read_manifest(tmp_path / "new/manifest.csv")
    pd.testing.assert_frame_equal(back, table)
    assert list(back.columns) == [*COLUMNS, "age"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["manifest.csv"]


def test_a_byte_order_mark_does_no_harm(table: pd.DataFrame, tmp_path: Path) -> None:
    path = changed(table, {}, tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    pd.testing.assert_frame_equal(read_manifest(path), table)


def test_subjects_keep_their_leading_zeros(table: pd.DataFrame, tmp_path: Path) -> None:
    write_manifest(table.assign(subject=table["subject"].str[3:], run="1"), tmp_path / "manifest.csv")
    back = read_manifest(tmp_path / "manifest.csv")
    assert list(back["subject"].unique()) == ["001", "002", "003"]
    assert set(back["run"]) == {"1"}


def test_all_problems_are_reported_together_each_with_its_row(table: pd.DataFrame, tmp_path: Path) -> None:
    cells: dict[tuple[int, str], object] = {
        (2, "tr_s"): -1, (3, "tr_s"): "fast", (4, "tr_s"): "", (5, "tr_s"): "nan", (6, "n_volumes"): "many",
        (7, "n_volumes"): "0", (8, "n_volumes"): "12.5", (9, "image"): "/etc/x.nii.gz", (10, "events"): "../EVs",
        (11, "mask"): "a/../../b.nii.gz", (12, "split"): "held-out", (13, "sha256"): "abc", (14, "subject"): "",
        (15, "run"): "L R", (16, "dataset"): "", (17, "task"): "a/b", (18, "image"): "",
    }  # fmt: skip
    with pytest.raises(ValueError, match="problem") as error:
        read_manifest(changed(table, cells, tmp_path))
    lines = str(error.value).splitlines()[1:]
    for (row, column), value in cells.items():
        assert any(line.startswith(f"  row {row}: {column} = {str(value)!r}") for line in lines), (row, column)
    assert len(lines) == len(cells) + 1
    assert "  row 12: subject sim002 is in split held-out, but in train in an earlier row" in str(error.value)


@pytest.mark.parametrize("column", ["subject", "family"])
def test_nobody_is_in_two_splits(table: pd.DataFrame, tmp_path: Path, column: str) -> None:
    if column == "family":
        cells: dict[tuple[int, str], object] = {(row, "family"): "F7" for row in (9, 16)}
        bad, who = 16, "family F7"  # of a subject in train and one in validation
    else:
        cells, bad, who = {(8, "split"): "validation"}, 8, "subject sim001"
    with pytest.raises(ValueError, match=rf"1 problem\(s\):\n  row {bad}: {who} is in split validation, but in train"):
        read_manifest(changed(table, cells, tmp_path))


def test_nobody_is_in_the_third_split_and_another(table: pd.DataFrame, tmp_path: Path) -> None:
    cells: dict[tuple[int, str], object] = {(row, "split"): "test" for row in range(2, 9)}
    assert set(read_manifest(changed(table, cells, tmp_path))["split"]) == {"train", "validation", "test"}
    cells |= {(9, "subject"): "sim001", (9, "run"): "RL"}
    with pytest.raises(ValueError, match="row 9: subject sim001 is in split train, but in test in an earlier row"):
        read_manifest(changed(table, cells, tmp_path))


def test_an_image_named_after_another_contrast_than_its_task_is_refused(tmp_path: Path) -> None:
    rows = [("T1w", "sub-1_T1w.nii.gz"), ("T1w", "sub-2_T2w.nii.gz"), ("image", "sub-3_T2w.nii"), ("T2w", "4.nii")]
    table = pd.DataFrame(
        [["d", str(n), "", task, "1", image, "", "", "", "1", "train", "", ""] for n, (task, image) in enumerate(rows)],
        columns=list(COLUMNS),
    )
    write_manifest(table, tmp_path / "m.csv")
    with pytest.raises(ValueError, match=r"1 problem.*\n  row 3: task = 'T1w', but sub-2_T2w.nii.gz is named T2w"):
        read_manifest(tmp_path / "m.csv")


def test_runs_are_split_only_where_that_is_asked_for(table: pd.DataFrame, tmp_path: Path) -> None:
    path = changed(table, {(8, "split"): "validation"}, tmp_path)
    assert read_manifest(path, split_unit="run")["split"][6] == "validation"


def test_repeated_runs_and_images_are_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    double = pd.concat([table, table[3:4]], ignore_index=True)
    write_manifest(double, tmp_path / "manifest.csv")
    with pytest.raises(ValueError, match=r"2 problem\(s\)") as error:
        read_manifest(tmp_path / "manifest.csv")
    assert "row 23: repeats the run sub-sim001_task-LANGUAGE_run-LR of an earlier row" in str(error.value)
    assert f"row 23: repeats the image {table['image'][3]} of an earlier row" in str(error.value)


def test_two_datasets_may_not_share_a_runs_name(table: pd.DataFrame, tmp_path: Path) -> None:
    cells: dict[tuple[int, str], object] = {
        (3, "dataset"): "other", (3, "task"): "WM", (3, "image"): "other/bold.nii.gz",
    }  # fmt: skip
    with pytest.raises(ValueError, match="row 3: repeats the run sub-sim001_task-WM_run-LR"):
        read_manifest(changed(table, cells, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a comma-separated table in UTF-8"),
        (",".join(COLUMNS).encode() + b"\nM\xfcller", "not a comma-separated table in UTF-8"),
        (",".join(COLUMNS).encode() + b"\n", "the manifest has no rows"),
        (",".join(COLUMNS[:-2]).encode() + b"\n", r"missing column\(s\) family, sha256; expected dataset, subject"),
        (b"a,b\n1,2\n1,2,3\n", "not a comma-separated table in UTF-8.*line 3"),
        (",".join(COLUMNS).encode() + b"\n" + b"x," * 13 + b"x", "rows have more cells than the header"),
    ],
    ids=["empty", "not UTF-8", "no rows", "missing columns", "ragged", "a comma too many"],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_manifest(tmp_path / "manifest.csv")
    assert str(tmp_path / "manifest.csv") in str(error.value)


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no manifest .* `deeplight manifest"):
        read_manifest(tmp_path / "manifest.csv")


def test_the_committed_manifest_is_the_built_in_dataset() -> None:
    pd.testing.assert_frame_equal(read_manifest(COMMITTED), plan(30, 10, 2.16, ("LR",)))


def test_run_keys_name_the_session_where_there_is_one(table: pd.DataFrame) -> None:
    assert run_key(table.loc[0]) == "sub-sim001_task-WM_run-LR"
    assert run_key(table.assign(session="2").loc[0]) == "sub-sim001_ses-2_task-WM_run-LR"
    assert unit_names(table, "subject").nunique() == 3
    assert unit_names(table, "run").nunique() == len(table)


def test_select_takes_the_tasks_and_the_first_units() -> None:
    table = plan(5, 3, 2.16, ("LR",)).sample(frac=1, random_state=0)
    data = DataSettings(source={"SOCIAL": ["interaction"]}, max_units={"train": 2, "validation": 1})
    chosen = select(table, data)
    assert sorted(set(zip(chosen["subject"], chosen["split"], strict=True))) == [
        ("sim001", "train"), ("sim002", "train"), ("sim006", "validation"),
    ]  # fmt: skip
    assert set(chosen["task"]) == {"SOCIAL", "WM"}
    assert list(chosen.index) == list(range(6))


def test_select_leaves_a_split_whole_that_is_not_limited() -> None:
    chosen = select(plan(5, 3), DataSettings(max_units={"train": 2}))
    assert chosen.groupby("split")["subject"].nunique().to_dict() == {"train": 2, "validation": 3}


def test_select_counts_runs_where_runs_are_the_unit() -> None:
    table = plan(1, 1)[lambda t: t["task"] == "WM"]
    data = DataSettings(split_unit="run", source={}, max_units={"train": 1, "validation": 2})
    assert list(select(table, data)["run"]) == ["LR", "LR", "RL"]


def test_select_refuses_what_is_not_there(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no runs of rest; it has EMOTION, GAMBLING"):
        select(table, DataSettings(source={"rest": ["rest"]}))
    with pytest.raises(ValueError, match="leaves no validation or test runs for tasks EMOTION, "):
        select(table[:14], DataSettings())
    with pytest.raises(ValueError, match="leaves no train runs for tasks EMOTION, "):
        select(table[14:], DataSettings())
    assert len(select(table.replace({"split": {"validation": "test"}}), DataSettings())) == len(table)


def test_select_takes_the_first_units_of_a_third_split_too() -> None:
    table = assign_splits(plan(9, 0), "subject", 3, 0, n_test=4)
    chosen = select(table, DataSettings(max_units={"test": 2, "validation": 1}))
    assert chosen.groupby("split")["subject"].nunique().to_dict() == {"train": 2, "validation": 1, "test": 2}
    first = sorted(table.loc[table["split"] == "test", "subject"].unique())[:2]
    assert sorted(chosen.loc[chosen["split"] == "test", "subject"].unique()) == first


def held_out(table: pd.DataFrame, seed: int, n: int = 6) -> set[str]:
    split = assign_splits(table, "subject", n, seed)
    assert split.groupby("subject")["split"].nunique().max() == 1
    return set(split.loc[split["split"] == "validation", "subject"])


def test_splits_are_drawn_by_subject_and_seed() -> None:
    table = plan(20, 0, runs=("LR",)).assign(split="")
    assert len(held_out(table, 0)) == 6
    assert held_out(table, 0) == held_out(table.sample(frac=1, random_state=1), 0)
    assert held_out(table, 0) != held_out(table, 1)


def test_runs_can_be_held_out_instead() -> None:
    table = plan(1, 0)
    split = assign_splits(table, "run", 5, 0)
    assert (split["split"] == "validation").sum() == 5


def test_families_stay_together() -> None:
    table = plan(20, 0, runs=("LR",))
    number = table["subject"].str[3:].astype(int)
    table["family"] = np.where(number <= 12, "F" + (number // 3).astype(str), "")
    for seed in range(5):
        split = assign_splits(table, "subject", 5, seed)
        assert split[split["family"] != ""].groupby("family")["split"].nunique().max() == 1
        assert 5 <= split.loc[split["split"] == "validation", "subject"].nunique() < 5 + 3


def test_too_many_held_out_is_refused() -> None:
    with pytest.raises(ValueError, match="holding out 3 of 3 subjects leaves none to train on"):
        assign_splits(plan(3, 0), "subject", 3, 0)


def splits_of(table: pd.DataFrame) -> dict[str, set[str]]:
    return {str(split): {*rows["subject"]} for split, rows in table.groupby("split")}


def test_a_third_split_leaves_the_draw_of_the_second_as_it_is() -> None:
    table = plan(20, 0, runs=("LR",)).assign(split="")
    for seed in range(5):
        two, three = (splits_of(assign_splits(table, "subject", 6, seed, n_test=n)) for n in (0, 5))
        assert set(two) == {"train", "validation"}
        assert {split: len(subjects) for split, subjects in three.items()} == {"train": 9, "validation": 6, "test": 5}
        assert three["validation"] == two["validation"]
        assert three["train"] | three["test"] == two["train"]
    assert splits_of(assign_splits(table, "subject", 6, 0, n_test=5)) == splits_of(
        assign_splits(table.sample(frac=1, random_state=1), "subject", 6, 0, n_test=5)
    )


def test_the_draw_of_two_splits_is_what_it_always_was() -> None:
    """Drawn by the program before there was a third split."""
    assert held_out(plan(20, 0, runs=("LR",)), 0) == {"sim003", "sim005", "sim007", "sim014", "sim017", "sim020"}
    families = crowd().assign(family=[f"f{i // 3}" for i in range(60)])
    split = assign_splits(families, "subject", 12, 3, "sex")
    assert sorted({*split.loc[split["split"] == "validation", "family"]}) == ["f16", "f2", "f6", "f8"]


def test_too_many_for_two_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"holding out 2 \+ 2 of 4 subjects leaves none to train on; ask for fewer"):
        assign_splits(plan(4, 0), "subject", 2, 0, n_test=2)


# ---- families, labels, strata


def people(folder: Path, text: str, name: str = "restricted.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("family", ["Family_ID", "Pedigree_ID", "family"])
def test_families_and_labels_come_from_a_table_of_subjects(table: pd.DataFrame, family: str, tmp_path: Path) -> None:
    path = people(tmp_path, f"Subject,{family},Age,Diagnosis\nsim003,b,36+,x\nsim001,a,22-25,y\nsim002,a,26-30,\n")
    added = add_subject_columns(table, path, ["Age"])
    assert added.drop_duplicates("subject")[["subject", "family", "Age"]].to_numpy().tolist() == [
        ["sim001", "a", "22-25"], ["sim002", "a", "26-30"], ["sim003", "b", "36+"],
    ]  # fmt: skip
    assert "Diagnosis" not in added  # nobody asked for it


def test_participants_of_bids_are_found_with_their_prefix(table: pd.DataFrame, tmp_path: Path) -> None:
    lines = ["participant_id\tsex", *(f"sub-sim00{i}\t{'FM'[i % 2]}" for i in (1, 2, 3))]
    added = add_subject_columns(table, people(tmp_path, "\n".join(lines), "participants.tsv"), ["sex"])
    assert added.groupby("subject")["sex"].first().tolist() == ["M", "F", "M"]
    assert (added["family"] == "").all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Subject,sex\nsim001,F\nsim001,M\nsim002,F\nsim003,M\n", "names sim001 more than once"),
        ("Subject,sex\nsim001,F\n", r"has no row for 2 subject\(s\) of the manifest: sim002, sim003"),
        ("name,sex\nsim001,F\n", "has no column participant_id \\(or subject\\); it has name, sex"),
        ("Subject\nsim001\nsim002\nsim003\n", "has no column sex; it has Subject"),
        ("", "is not a comma-separated table in UTF-8"),
    ],
)
def test_a_bad_table_of_subjects_is_named(table: pd.DataFrame, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"restricted.csv {message}"):
        add_subject_columns(table, people(tmp_path, text), ["sex"])


def crowd(n: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(1)
    rows = plan(n, 1, 2.16, ("LR",))
    rows = rows[rows["subject"] != rows["subject"].iloc[-1]].drop_duplicates("subject").reset_index(drop=True)
    return rows.assign(
        sex=np.where(np.arange(n) < n // 3, "F", "M"), age=random.uniform(20, 80, n).round(1).astype(str)
    )


@pytest.mark.parametrize(("column", "n_strata"), [("sex", 2), ("age", 4)])
@pytest.mark.parametrize("seed", range(5))
def test_strata_are_held_out_in_proportion(column: str, n_strata: int, seed: int) -> None:
    rows = crowd()
    split = assign_splits(rows, "subject", 12, seed, column)
    held_out = split[split["split"] == "validation"]
    assert held_out["subject"].nunique() == 12
    quarters = pd.qcut(rows["age"].astype(float), 4, labels=False)
    strata = rows["sex"] if column == "sex" else quarters
    expected = strata.value_counts() * 12 / 60
    counts = strata[held_out.index].value_counts().reindex(expected.index, fill_value=0)
    assert len(expected) == n_strata
    assert (counts - expected).abs().max() < 1


def test_families_stay_together_in_strata() -> None:
    rows = crowd().assign(family=[f"f{i // 3}" for i in range(60)])
    split = assign_splits(rows, "subject", 12, 3, "sex")
    assert {*split.loc[split["split"] == "train", "family"]}.isdisjoint(split.loc[split["split"] != "train", "family"])
    assert 12 <= (split["split"] == "validation").sum() <= 14


@pytest.mark.parametrize("seed", range(5))
def test_families_and_strata_hold_in_three_splits(seed: int) -> None:
    rows = crowd()
    split = assign_splits(rows, "subject", 12, seed, "sex", n_test=15)
    counts = pd.crosstab(split["split"], split["sex"])
    assert counts.loc["validation"].to_dict() == {"F": 4, "M": 8}
    assert counts.loc["test"].to_dict() == {"F": 5, "M": 10}
    families = rows.assign(family=[f"f{i // 3}" for i in range(60)])
    split = assign_splits(families, "subject", 12, seed, n_test=15)
    assert split.groupby("family")["split"].nunique().max() == 1
    assert split["split"].value_counts().to_dict() == {"train": 33, "validation": 12, "test": 15}


def test_strata_that_cannot_be_are_named() -> None:
    rows = crowd()
    with pytest.raises(ValueError, match="has no column height to stratify by"):
        assign_splits(rows, "subject", 12, 0, "height")
    with pytest.raises(ValueError, match="sex is empty for sim001"):
        assign_splits(rows.assign(sex=["", *rows["sex"][1:]]), "subject", 12, 0, "sex")


def test_a_row_without_a_repetition_time_is_structural_and_a_run_may_have_no_events(tmp_path: Path) -> None:
    rows = plan(2, 1, 2.16, ("LR",))[:14].astype(object)
    rows.loc[0, ["events", "tr_s", "n_volumes"]] = ["", "", "1"]
    rows.loc[8, "events"] = ""
    write_manifest(rows, tmp_path / "m.csv")
    table = read_manifest(tmp_path / "m.csv")
    assert is_structural(table).tolist() == [True] + [False] * 13
    assert is_structural(table.iloc[0])
    assert not is_structural(table.iloc[8])
    assert is_structural(rows).tolist() == [True] + [False] * 13  # as a scan leaves it, before it is written


def test_what_a_structural_image_cannot_have_is_named(tmp_path: Path) -> None:
    rows = plan(2, 1, 2.16, ("LR",))[:14].astype(object)
    rows.loc[9, "tr_s"] = ""
    rows.loc[10, ["tr_s", "n_volumes"]] = ["", "1"]
    rows.loc[11, ["events", "tr_s", "n_volumes"]] = ["", "", "2"]
    write_manifest(rows, tmp_path / "m.csv")
    with pytest.raises(ValueError, match=r"3 problem\(s\)") as error:
        read_manifest(tmp_path / "m.csv")
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["row 11", "row 12", "row 13"]
    for line, events, n in zip(lines, (rows["events"][9], rows["events"][10], ""), ("95", "1", "2"), strict=True):
        assert "tr_s = '' must be seconds" in line
        assert f"events = {events!r} and n_volumes = {n!r}" in line


def test_notes_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    left_out = pd.DataFrame([("a, b", "no EVs")], columns=["path", "reason"])
    write_notes(path, "s3://x/y", "bids", "run", {"faces": {"face": ["f1"]}}, left_out)
    assert read_notes(path) == {
        "root": "s3://x/y", "layout": "bids", "split_unit": "run", "states": {"faces": {"face": ["f1"]}}
    }  # fmt: skip
    write_notes(path, "s3://x/y", "bids", "run", {}, left_out, {"lag_s": 4.0})
    assert read_notes(path)["preprocessing"] == {"lag_s": 4.0}
    pd.testing.assert_frame_equal(read_left_out(path), left_out)
    assert read_left_out(tmp_path / "other.csv").empty
    with pytest.raises(ValueError, match=r"^there is no manifest .*other.csv; make one with `deeplight manifest`$"):
        read_notes(tmp_path / "other.csv")
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(ValueError, match=r"other.source.json, which says where the data of .* are, cannot be read"):
        read_notes(tmp_path / "other.csv")


@pytest.mark.parametrize("nothing", ["n/a", "N/A", "NA", "nan", "NaN"])
@pytest.mark.parametrize("column", ["family", "Family_ID"])
def test_what_is_not_known_is_so_however_it_is_written(
    table: pd.DataFrame, tmp_path: Path, nothing: str, column: str
) -> None:
    people = f"participant_id\t{column}\tsex\n" + "".join(
        f"sub-{s}\t{nothing}\t{nothing}\n" for s in {*table["subject"]}
    )
    (tmp_path / "participants.tsv").write_text(people)
    added = add_subject_columns(table, tmp_path / "participants.tsv", ["sex"])
    assert (set(added["family"]), set(added["sex"])) == ({""}, {"n/a"})
    write_manifest(table.assign(family=nothing, sex=nothing, dataset=nothing), tmp_path / "m.csv")
    read = read_manifest(tmp_path / "m.csv")
    assert (set(read["family"]), set(read["sex"]), set(read["dataset"])) == ({""}, {"n/a"}, {nothing})


def test_a_participant_may_have_several_equal_rows(table: pd.DataFrame, tmp_path: Path) -> None:
    subjects = sorted({*table["subject"]})
    lines = [f"sub-{s}\tses-{n}\tF\t{n}" for s in subjects for n in (1, 2)]
    (tmp_path / "participants.tsv").write_text("\n".join(["participant_id\tsession\tsex\tweight", *lines]) + "\n")
    assert set(add_subject_columns(table, tmp_path / "participants.tsv", ["sex"])["sex"]) == {"F"}
    with pytest.raises(ValueError, match=rf"names {subjects[0]}, .* more than once, with different weight"):
        add_subject_columns(table, tmp_path / "participants.tsv", ["sex", "weight"])


@pytest.mark.parametrize("nothing", ["n/a", "NA"])
def test_strata_that_are_not_known_are_named(table: pd.DataFrame, nothing: str) -> None:
    sex = table["subject"].map({s: "F" for s in {*table["subject"]}} | {"sim001": nothing})
    with pytest.raises(ValueError, match="sex is n/a for sim001; fill it"):
        assign_splits(table.assign(sex=sex), "subject", 1, 0, "sex")


def test_a_study_that_cannot_be_divided_is_told_why(table: pd.DataFrame) -> None:
    alone = table[table["subject"] == "sim001"]
    with pytest.raises(ValueError, match=r"1 of 1 subjects leaves none to train on; .* --split-unit run$"):
        assign_splits(alone, "subject", 1, 0)
    with pytest.raises(ValueError, match=r"1 of 1 runs leaves none to train on; one run cannot be divided$"):
        assign_splits(alone[:1], "run", 1, 0)
    with pytest.raises(ValueError, match=r"look at the families: these 3 subjects are 1 families$"):
        assign_splits(table.assign(family="f"), "subject", 3, 0)


def test_a_study_without_a_source_is_told_how_it_works(table: pd.DataFrame) -> None:
    own = table.assign(task="loc").drop_duplicates("subject")
    with pytest.raises(ValueError, match=r"write `source: \{\}` in `data`: .* scratch, linear"):
        select(own, DataSettings(layout="bids", target={"loc": ["face", "house"]}))
    assert len(select(own, DataSettings(layout="bids", source={}, target={"loc": ["face", "house"]}))) == len(own)
    with pytest.raises(ValueError, match=r"neither data.source nor data.target names a task"):
        select(own, DataSettings(layout="bids", source={}, target={}))


@pytest.mark.parametrize("cell", ["-1", "soon", "1e5"])
def test_a_start_that_is_no_time_is_named(table: pd.DataFrame, cell: str, tmp_path: Path) -> None:
    write_manifest(table.assign(start_s=["0.5", cell] + [""] * (len(table) - 2)), tmp_path / "m.csv")
    with pytest.raises(ValueError, match=f"row 3: start_s = '{cell}' must be seconds"):
        read_manifest(tmp_path / "m.csv")
