from pathlib import Path

import pytest

from deeplight_core.system.files import file_sha256, read_table, write_whole


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_write_whole_writes_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new/file.txt"
    write_whole(path, lambda p: p.write_text("old"))

    def fails(partial: Path) -> None:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write_whole(path, fails)
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


def table(folder: Path, text: str, name: str = "x.tsv") -> list[list[str]]:
    (folder / name).write_text(text)
    read = read_table(folder / name)
    return [list(read.columns), *read.to_numpy().tolist()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\n 1\t2 x \n\n3\t\n", [["a", "b"], ["1", "2 x"], ["3", ""]]),
        ("a\tb\t\t\n1\t2\t\t\n", [["a", "b"], ["1", "2"]]),
        ("a\tb\n1\t2\t\t\n3\t4\n", [["a", "b"], ["1", "2"], ["3", "4"]]),
        ("\ta\n0\tx\n", [["Unnamed: 0", "a"], ["0", "x"]]),
        ('a\tb\n"1\t2"\t5" wide\n', [["a", "b"], ["1\t2", '5" wide']]),
        ("\ufeffa\r\n1\r\n", [["a"], ["1"]]),
        ("a\tb\n", [["a", "b"]]),
    ],
    ids=["blanks", "columns without a name", "empty cells beyond", "an index", "quotes", "Windows", "no rows"],
)
def test_tables_as_people_have_them(tmp_path: Path, text: str, expected: list[list[str]]) -> None:
    assert table(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a\tb\n1\t"x\n2\ty\n3\tz"\n', "a cell goes over several lines, in line 4 or before it; is a quotation mark"),
        ('a\tb\n1\t"x\n2\ty\n', "is a quotation mark not closed"),
        ('a\tb\n1\t"x"y\n', "is a quotation mark not closed"),
        ("a\tb\n1\t2\t3\n4\t5\n", "line 2 has more cells than the header; is there a tab too many"),
        ("a\tb\ta\n1\t2\t3\n", "has several columns a; rename"),
        (" \n", "it is empty"),
        ("onset;duration\n0,5;2\n", "its columns are separated by semicolons; save it anew, separated by tabs"),
        ("onset,duration\n0,2\n", "its columns are separated by commas"),
        ("/annex/objects/MD5E-s9--0.tsv", "only a pointer of git-annex"),
        ("../../.git/annex/objects/MD5E-s9--0.tsv", "only a pointer of git-annex"),
        ("version https://git-lfs.github.com/spec/v1\n", "only a pointer of Git LFS"),
    ],
)
def test_tables_that_would_be_read_wrongly_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_a_csv_may_have_cells_of_several_lines(tmp_path: Path) -> None:
    assert table(tmp_path, 'a,b\n1,"x\ny"\n', "x.csv") == [["a", "b"], ["1", "x\ny"]]
