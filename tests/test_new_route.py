"""A fifth route, added as CONTRIBUTING says: an encoder, a head and an entry; from unlabelled windows to a decoder.

And one that is added by the page *A new way to pre-train*, word for word.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import N_FRAMES, kill_at_step, use_threads
from safetensors.torch import load_file
from tiny import Order, OrderSettings, TinyEncoder, TinySettings

from deeplight_core import config, experiment, models, routes
from deeplight_core.config import Profile
from deeplight_core.data.manifest import write_manifest
from deeplight_core.data.prepare import prepare
from deeplight_core.routes import PretrainingSettings, Route, Routes, Section, Variant, WindowSettings

ROOT = Path(__file__).parents[1]

# ---- what somebody writes into models/ and routes.py


class GuessSettings(Section):
    encoder: TinySettings = TinySettings()
    head: OrderSettings = OrderSettings()
    example: WindowSettings = WindowSettings(length_s=4, gap_s=2, step_s=4)
    pretraining: PretrainingSettings = PretrainingSettings(epochs=2, batch_size=16, learning_rate=1e-3, threads=1)


class MoreRoutes(Routes):
    guess: GuessSettings = GuessSettings()


GUESS = Route("guessing the order", "nobody", encoder="tiny", head="order", example="window", unlabelled=True)
FROM_GUESS = Variant("pre-trained on order", route="guess", start="checkpoint")


# ---- and what there is then


@pytest.fixture
def profile(
    dataset: tuple[pd.DataFrame, Path], tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Profile:
    """Pre-trains by the new route on a task without any state, fine-tunes on another."""
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    monkeypatch.setitem(models.ENCODERS, "tiny", TinyEncoder)
    monkeypatch.setitem(models.HEADS, "order", Order)
    monkeypatch.setitem(routes.ROUTES, "guess", GUESS)
    monkeypatch.setitem(routes.VARIANTS, "guessed", FROM_GUESS)
    data = tiny_profile.data.model_copy(update={"source": {"EMOTION": {}}})
    kept = tiny_profile.preprocessing.model_copy(update={"keep": "all"})
    update = {"name": "guess", "data": data, "preprocessing": kept, "routes": MoreRoutes()}
    made = tiny_profile.model_copy(update=update)
    manifest = dataset[0].assign(events=dataset[0]["events"].where(dataset[0]["task"] != "EMOTION", ""))  # rest
    prepare(manifest, made, jobs=1)
    return made


def test_the_new_route_pretrains_without_labels_and_a_decoder_starts_from_it(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = experiment.pretrain(profile, 1, "guess")
    assert pretrained.folder.name.startswith("pretraining-guess-seed1-")
    metrics = pretrained.metrics()
    assert set(metrics["measure"]) == {"contrast_accuracy"}
    n_windows = -(-(N_FRAMES["EMOTION"] - 3 * 2 - 2 * 1 + 1) // 2)  # of a run, every second one
    assert set(metrics.loc[metrics["split"] == "train", "n"]) == {n_windows}
    results = pretrained.results()
    assert set(results["seen_volumes"]) == {2 * 4 * n_windows * 6}  # two epochs, four subjects, six volumes a window
    decoder = experiment.finetune(profile, "guessed", 1.0, 1)
    assert set(decoder.results()["encoder"]) == {"tiny"}
    assert set(decoder.results()["route"]) == {"guess"}
    assert set(decoder.results()["measure"]) == {"accuracy"}
    frozen = monkeypatch.setitem(
        routes.VARIANTS, "guessed-frozen", Variant("", "guess", start="checkpoint", frozen=True)
    )
    assert frozen is None
    of_frozen = load_file(experiment.finetune(profile, "guessed-frozen", 1.0, 1).folder / "model.safetensors")
    before = load_file(pretrained.folder / "model.safetensors")
    assert {name for name in before if name.startswith("encoder.")} == {
        n for n in of_frozen if n.startswith("encoder.")
    }
    assert all(torch.equal(of_frozen[name], before[name]) for name in of_frozen if name.startswith("encoder."))


def test_it_is_killed_and_resumed(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_at_step(patch, 6)  # in the second epoch
        with pytest.raises(KeyboardInterrupt):
            experiment.pretrain(profile, 1, "guess")
    resumed = load_file(experiment.pretrain(profile, 1, "guess").folder / "model.safetensors")
    shutil.rmtree(experiment.pretraining(profile, 1, "guess").folder)
    unbroken = load_file(experiment.pretrain(profile, 1, "guess").folder / "model.safetensors")
    assert any("running" in name for name in unbroken)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in unbroken.items())


def test_every_route_has_its_settings() -> None:
    assert {*Routes.model_fields} == {*routes.ROUTES}
    for name, route in routes.ROUTES.items():
        section = getattr(config.Profile().routes, name)
        assert isinstance(section.encoder, models.ENCODERS[route.encoder].Settings)
        assert isinstance(section.head, models.HEADS[route.head].Settings)
        assert isinstance(section.pretraining, PretrainingSettings)
    assert {variant.route for variant in routes.VARIANTS.values()} <= {*routes.ROUTES}


# ---- the page

TRAINING = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 8, "learning_rate": 1e-3, "threads": 1}
WAYS = ["reconstruction", "masked", "scratch", "linear", "reconstruction-frozen", "masked-frozen"]
BLOCK = r"^```(\w+)\n(.*?)^```$"
PLACE = (
    r"(?:the new file|In) `([\w/.]+)`"
    r"(?:,\s(after|before)\sthe\sline\s(that\sbegins\swith\s)?`(.+?)`(?:\sof\s`\w+`)?)?:\n\n"
) + BLOCK
SCORED = """
import torch
from deeplight_core import models
parts = {"encoder": {"name": "deeplight", "shape": [7, 8, 9], "settings": {}}}
parts["head"] = {"name": "masked", "targets": [], "settings": {"output": "linear", "edge": 2}}
model, volumes, seen = models.build(parts).eval(), torch.randn(50, 9, 8, 7), []
trace = model.encoder.trace
model.encoder.trace = lambda given: seen.append(given) or trace(given)
with torch.no_grad():
    for training in (False, True):
        each = model.train(training).loss({"volumes": volumes, "targets": torch.empty(50, 0)}).each
        if not training:
            squares = (model.head(*trace(seen[0])) - volumes).square()
            expected = [own[given == 0].mean() for own, given in zip(squares, seen[0])]
            torch.testing.assert_close(each, torch.stack(expected))
held_out, drawn = ((given == 0).float() for given in seen)
assert (held_out == held_out[0]).all() and not (drawn == drawn[0]).all()
assert abs(drawn.mean() - 0.6) < 0.05, drawn.mean()  # 50 volumes of 80 cubes each
assert all((given[given != 0] == volumes[given != 0]).all() for given in seen)
"""
FOLLOWED = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import matplotlib.pyplot as plt
import pandas as pd
from deeplight_core import cli
from deeplight_core.report import page
from deeplight_core.system import workers
workers.ProcessPoolExecutor = lambda jobs, *_: ThreadPoolExecutor(jobs)  # each process needs seconds to import torch
sys.argv = {command}
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code
for file in Path().glob("runs/comparison/finetuning-masked-[01]*/scores.csv"):  # nobody else has these scores
    table = pd.read_csv(file)
    table.assign(score=0.75 + table["fraction"] / 8).to_csv(file, index=False)
said, figures = [], []
page.say = lambda *texts: said.extend(texts)
page.show = lambda table: said.append("" if table is None else table.to_html())
for name in ("02_pretraining", "09_comparison"):
    for cell in json.load(open(f"notebooks/{name}.ipynb", encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]))
            profile, route = "comparison", "masked"
for number in plt.get_fignums():
    figure = plt.figure(number)
    texts = [text.get_text() for axes in figure.axes for text in (*axes.get_yticklabels(), axes.title)]
    figures.append([*texts, *(text.get_text() for legend in figure.legends for text in legend.get_texts())])
json.dump([said, figures, costs.to_dict("records"), means.to_dict("records")], open("page.json", "w"))
"""


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "book/new_route.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def changed(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's blocks in their places."""
    copy = tmp_path_factory.mktemp("changed")
    for name in ("deeplight_core", "profiles", "notebooks", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for file, where, begins, anchor, _, block in re.findall(PLACE, page, re.DOTALL | re.MULTILINE):
        if not where:
            (copy / file).write_text(block, encoding="utf-8")
            continue
        lines = (copy / file).read_text(encoding="utf-8").splitlines(keepends=True)
        stripped = [line.strip()[: len(anchor)] if begins else line.strip() for line in lines]
        found = [n for n, line in enumerate(stripped) if line == anchor]
        assert len(found) == 1, f"{anchor} is in {len(found)} lines of {file}"
        lines.insert(found[0] + (where == "after"), block)
        (copy / file).write_text("".join(lines), encoding="utf-8")
    return copy


def follow(command: list[str], changed: Path) -> None:
    done = subprocess.run(
        command, cwd=changed, env={**os.environ, "PYTHONPATH": str(changed), "MPLBACKEND": "agg"}, capture_output=True,
        text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_about_60_lines_of_code_each_with_its_place(page: str) -> None:
    blocks = [block for kind, block in re.findall(BLOCK, page, re.DOTALL | re.MULTILINE) if kind in ("python", "yaml")]
    assert [block for *_, block in re.findall(PLACE, page, re.DOTALL | re.MULTILINE)] == blocks
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) == pytest.approx(int(re.search(r"in about (\d+) lines", page)[1]), rel=0.15)


def test_the_battery_covers_the_pages_head(page: str, changed: Path) -> None:
    name, *words = shlex.split(re.search(r"^pytest .*$", page, re.MULTILINE)[0])
    follow([sys.executable, "-W", "error", "-m", name, "-p", "no:cacheprovider", *words], changed)


def test_the_pages_head_is_scored_where_it_cannot_see(changed: Path) -> None:
    follow([sys.executable, "-c", SCORED], changed)


def test_the_pages_way_has_its_line_in_the_comparison(
    page: str, changed: Path, dataset: tuple[pd.DataFrame, Path], tiny_profile: Profile
) -> None:
    written = yaml.safe_load((changed / "profiles/comparison.yaml").read_text(encoding="utf-8"))
    of = {name: section["pretraining"] for name, section in written["routes"].items() if "pretraining" in section}
    seen = {r: of[r]["epochs"] * of[r]["steps_per_epoch"] * of[r]["batch_size"] for r in ("supervised", "masked")}
    assert seen["masked"] == seen["supervised"]
    assert {*WAYS} <= {*written["sweep"]["variants"]}
    tiny = tiny_profile.model_dump(mode="json", include={"data"})["data"]
    written |= {"data": tiny | {"manifest": "data_manifest.csv"}, "preprocessing": {"keep": "all"}}
    del written["simulation"]
    for section in written["routes"].values():
        section |= {"pretraining": TRAINING} if "pretraining" in section else {}
    written["finetuning"] = TRAINING
    written["sweep"] |= {
        "variants": [v for v in written["sweep"]["variants"] if v in WAYS],
        "fractions": [0.5, 1.0],
        "seeds": [1, 2],
    }
    written["controls"] = {"initialisation": [], "tuning_manifest": None}
    (changed / "profiles/comparison.yaml").write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    write_manifest(dataset[0], changed / "data_manifest.csv")
    command = shlex.split(re.search(r"^deeplight sweep comparison$", page, re.MULTILINE)[0])
    follow([sys.executable, "-c", FOLLOWED.replace("{command}", repr([*command, "--jobs", "1"]))], changed)
    said, figures, costs, means = json.loads((changed / "page.json").read_text())
    text, title = "\n".join(said), "DeepLight, pre-trained by masked reconstruction"
    assert f"All {len(WAYS) * 2 * 2} trainings needed here have been run." in text
    assert "repeats the pre-training: autoencoding of fMRI volumes and masked reconstruction, on " in text
    row = text.partition(f">{title}</td>")[2].partition("</tr>")[0]  # of the table of sizes, the first
    assert re.findall(r">([\d.]+%)", row) == ["81.2%", "87.5%"]
    of_way = [(row["n_subjects"], row["mean"]) for row in means if row["variant"] == "masked"]
    assert of_way == [(2, 0.8125), (4, 0.875)]
    assert re.search(r"(Better than|Worse than|Not told apart from) no pre-training: [^.]*masked reconstruction", text)
    seen = {row["variant"]: row["pretraining_volumes"] for row in costs}
    assert seen["masked"] == seen["reconstruction"] == 2 * 8
    for name, least in ((title, 2), (title.removeprefix("DeepLight, "), 1), ("masked reconstruction", 1)):
        assert sum(name in texts for texts in figures) >= least  # a brain is drawn where one is answered correctly
