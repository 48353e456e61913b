from pathlib import Path

import pytest

from deeplight_core.system.files import file_sha256, write_whole


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
