import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from deeplight_core.report import plots
from deeplight_core.report.findings.cells import table
from deeplight_core.report.html import Part, document
from deeplight_core.report.relevance import state_page

pytestmark = pytest.mark.usefixtures("no_window")

EVIL = '<script>alert("x")</script>&'


class Read(HTMLParser):
    """Tags with their attributes, and the text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def outside(page: str) -> list[str]:
    """What a page would ask for elsewhere, also in the documents within it."""
    found = []
    for _, attributes in Read(page).tags:
        for name in ("src", "href"):
            value = attributes.get(name) or ""
            if value and not value.startswith(("#", "data:")):
                found.append(value)
        found += outside(attributes["srcdoc"]) if attributes.get("srcdoc") else []
    return found + re.findall(r"url\(['\"]?(http[^)]*)", page)


@pytest.fixture
def brain() -> nib.Nifti1Image:
    """A coarse map in MNI space with one large place."""
    data, affine = np.zeros((19, 23, 19), np.float32), np.diag([-9.0, 9, 9, 1])
    affine[:3, 3] = [81, -117, -63]
    data[6:9, 10:13, 8:11], data[12, 12, 12] = 1.0, -0.6
    return nib.Nifti1Image(data, affine)


def test_whatever_comes_from_data_is_escaped() -> None:
    plt.close("all")  # those of other tests
    table = pd.DataFrame({EVIL: [EVIL, "b"]})
    figure = plt.figure(figsize=(1, 1))
    page = document(EVIL, [Part(EVIL, [EVIL], EVIL, table, {EVIL: figure}, f"<b>{EVIL}</b>")])
    read = Read(page)
    assert "script" not in {tag for tag, _ in read.tags}
    assert read.text.count(EVIL) == 9  # title, heading, link, heading, paragraph, quote, two cells, caption
    (picture,) = (attributes for tag, attributes in read.tags if tag == "img")
    assert picture["alt"] == EVIL
    (frame,) = (attributes for tag, attributes in read.tags if tag == "iframe")
    assert frame["srcdoc"] == f"<b>{EVIL}</b>"
    assert outside(page) == []
    assert not plt.get_fignums()


def test_absent_things_are_left_out() -> None:
    read = Read(document("t", [Part("a", ["b"])]))
    assert {"table", "img", "iframe", "pre"}.isdisjoint(tag for tag, _ in read.tags)


def test_a_states_page_has_all_pictures_and_asks_for_nothing_else(brain: nib.Nifti1Image) -> None:
    regions = pd.DataFrame({"x": [9.0], "y": [-18.4], "z": [18.0], "value": [0.123456], "volume_mm3": [19683.0],
                            "near": [EVIL], "near_mm": [8.6]})  # fmt: skip
    page = state_page(EVIL, brain, regions, ["a sentence"])
    read = Read(page)
    assert sum(tag == "img" for tag, _ in read.tags) == 3
    assert "0.1235" in read.text
    assert "Dosenbach et al. 2010" in read.text
    assert read.text.count(EVIL) == 3  # title, heading, place
    assert "-18" in read.text
    assert outside(page) == []
    (frame,) = (attributes for tag, attributes in read.tags if tag == "iframe")
    assert "brainsprite" in str(frame["srcdoc"])
    assert "<script>alert" not in str(frame["srcdoc"])  # also not within the viewer's own scripts
    assert "‹script›alert" in str(frame["srcdoc"])


def test_a_dollar_sign_in_a_name_is_no_formula(brain: nib.Nifti1Image) -> None:
    name = r"won $\foo$"
    shares = pd.DataFrame(np.eye(2), *[pd.MultiIndex.from_tuples([("a", name), ("b", name)])] * 2)
    metrics = pd.DataFrame(
        {"epoch": [1, 1], "split": ["train", "validation"], "task": name, "subject": "s", "score": 1}
    )
    figures = [
        plots.glass_brains({name: brain}), plots.activation_maps({name: brain}), plots.surface_map(brain, name),
        plots.confusion_matrix(shares), plots.task_curves(metrics, 2),
        plots.group_values({"voxels": np.arange(4.0)}, np.arange(4) > 1, (name, "b")),
    ]  # fmt: skip
    for figure in figures:
        figure.canvas.draw()


def test_names_in_the_books_tables_are_no_markup() -> None:
    assert "<script" not in table({EVIL: [EVIL]}).to_html()


def test_bars_show_means_and_states() -> None:
    scores = pd.DataFrame({
        "way": ["a", "a", "b", "b"], "state": ["x", "y"] * 2, "mass": [0.1, 0.3, 0.2, 0.4], "rank": [0.5] * 4,
        "pointing": [0.0, 1, 1, 1], "auc": [0.6, 0.8, 0.9, 1.0],
    })  # fmt: skip
    figure = plots.localisation_bars(scores)
    assert [axes.get_xlabel() for axes in figure.axes] == ["relevance mass", "rank accuracy", "pointing game", "AUC"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    np.testing.assert_allclose(widths, [[0.2, 0.3], [0.5, 0.5], [0.5, 1.0], [0.7, 0.95]])
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 4
