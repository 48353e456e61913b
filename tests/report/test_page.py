import shutil
from pathlib import Path

import pandas as pd
import pytest

from deeplight_core.config import load_profile
from deeplight_core.report import page


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the page shows, in its order: the text of Markdown, and tables."""
    found: list[object] = []
    monkeypatch.setattr(page, "display", lambda what: found.append(getattr(what, "data", what)))
    return found


def test_a_page_begins_with_its_settings_and_says_where_its_data_come_from(
    shown: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    settings = page.begin("smoke", {"finetuning": {"epochs": 7}}, target="MOTOR")
    assert settings == load_profile("smoke", {"finetuning": {"epochs": 7}}).for_target("MOTOR")
    assert shown == [settings.provenance]
    assert (tmp_path / "runs" / "smoke").is_dir()  # pages write their tables there
    with pytest.raises(ValueError, match="there is no profile"):
        page.begin("smok")


def test_what_is_said_is_one_paragraph_of_what_there_is(shown: list[object]) -> None:
    page.say("One.", "", "Two.")
    page.say("", "")
    assert shown == ["One. Two."]


def test_tables_that_are_not_there_are_left_out(shown: list[object]) -> None:
    table = pd.DataFrame({"a": [1]})
    page.show(None, table, None)
    assert len(shown) == 1
    assert shown[0] is table
