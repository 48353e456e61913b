import re

import pytest

from deeplight_core.system.progress import Bar, duration, track


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (5.4, "0:05"), (59.6, "1:00"), (65, "1:05"), (3599.7, "1:00:00"), (7389, "2:03:09")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_track_yields_the_items_and_reports_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), 3, "letters", every_s=60)) == ["a", "b", "c"]
    assert capsys.readouterr().out == "letters: 3/3, took 0:00\n"


def test_track_reports_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    list(track(range(3), 3, "runs", every_s=0))
    text = re.sub(r"\d+:\d\d", "T", capsys.readouterr().out)
    assert text == "runs: 1/3, T left\nruns: 2/3, T left\nruns: 3/3, took T\n"


def test_track_is_silent_without_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], 0, "runs")) == []
    assert capsys.readouterr().out == ""


def test_a_bar_lives_on_terminals_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
        bar = Bar(10, "pre-training")
        bar.update(4, "batch 4/10, 123 volumes/s, 0:05 left")
        print("epoch 1 is done")
        bar.close()
        out = capsys.readouterr().out
        assert "epoch 1 is done" in out
        assert ("pre-training" in out) == ("123 volumes/s" in out) == terminal
    quiet = Bar(10, "pre-training", shown=False)
    quiet.update(4, "batch 4/10")
    quiet.close()
    assert capsys.readouterr().out == ""
