"""Checkpoints that travel through a stand-in for the Hugging Face hub, on this machine."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from conftest import SHAPE, contents

from deeplight_core import cli
from deeplight_core.data.store import Store
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.training.checkpoint import data_facts, load_model, read_record, save_model
from deeplight_core.training.exported import write_exported
from deeplight_core.training.hub import FILES, local, push

TOKEN = "hf_" + "x" * 34


class Hub(ThreadingHTTPServer):
    """Repositories by name: commits and their files; what headers say can be spoilt."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.spoilt: dict[str, str] = {}
        self.asked: list[str] = []

    def take(self, name: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories.setdefault(name, {})[commit] = files
        return commit


class Request(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def json(self, content: Any, status: int = 200) -> None:
        headers = {"Content-Type": "application/json"}
        if status == 404:
            headers["X-Error-Code"] = "RepoNotFound"
        self.answer(status, json.dumps(content).encode(), headers)

    def resolve(self, with_body: bool) -> None:
        self.server.asked.append(self.path)
        name, _, rest = self.path.strip("/").partition("/resolve/")
        commit, _, file = rest.partition("/")
        files = self.server.repositories.get(name, {}).get(commit)
        if files is None or file not in files:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound" if files is None else "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"'}
        self.answer(200, files[file], headers | (self.server.spoilt if file == "model.json" else {}), with_body)

    def do_HEAD(self) -> None:
        self.resolve(with_body=False)

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self.resolve(with_body=True)
            return
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        commits = [*self.server.repositories.get(name, {})]
        if self.path.startswith("/api/models/") and commits:
            self.json({"id": name, "sha": commits[-1], "siblings": [{"rfilename": "../../evil"}]})
        else:
            self.json({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        if self.path == "/api/repos/create":
            self.json({"url": "http://127.0.0.1/lab/decoder", "name": "lab/decoder"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines if line["key"] == "file"
            }  # fmt: skip
            commit = self.server.take("lab/decoder", files)
            self.json({"commitUrl": f"http://127.0.0.1/lab/decoder/commit/{commit}", "commitOid": commit})
        else:
            self.json({})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"  # as $HF_ENDPOINT would set it before the import
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    names = {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HOME": str(tmp_path / "home")}
    for name, value in names.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def exported(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    save_model(DeepLight(SHAPE, 2), folder, {"data": data_facts(store), "training": {}})
    record = {**read_record(folder), "n_units": 1, "n_reported": 1, "scores": [], "manifest": "", "licence": "CC0-1.0"}
    return write_exported(folder / "model.safetensors", store.mask, record, folder / "exported")


def test_what_is_pushed_is_what_others_get(
    hub: Hub, exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = push(exported, "lab/decoder")
    assert name == f"lab/decoder@{next(iter(hub.repositories['lab/decoder']))}"
    folder = local(name)
    assert contents(folder) == contents(exported)
    assert {*contents(folder)} == {*FILES}
    one, other = (load_model(of)[0].state_dict() for of in (folder, exported))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    asked = len(hub.asked)
    assert local(name) == folder  # from the cache
    assert len(hub.asked) == asked
    shown = capfd.readouterr()
    assert TOKEN not in shown.out + shown.err
    assert all(TOKEN not in text.decode(errors="replace") for text in contents(tmp_path).values())


def test_a_name_must_be_pinned(hub: Hub, exported: Path) -> None:
    commit = hub.take("lab/decoder", contents(exported))
    for name in ("lab/decoder", "lab/decoder@main", "hub:lab/decoder@v1"):
        with pytest.raises(ValueError, match=rf"is not pinned: .* is now lab/decoder@{commit}; give this name"):
            local(name)


def test_other_files_of_a_repository_are_not_asked_for(hub: Hub, exported: Path, tmp_path: Path) -> None:
    files = contents(exported) | {"../../evil": b"x", "pytorch_model.bin": b"\x80\x04."}
    folder = local(f"lab/decoder@{hub.take('lab/decoder', files)}")
    assert {*contents(folder)} == {*FILES}
    assert not [path for path in hub.asked if "evil" in path or "bin" in path]
    assert folder.is_relative_to(tmp_path / "home")


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"ETag": '"../../../../evil"'}, r"answers for another revision .*or not as it should"),
        ({"X-Repo-Commit": "../../evil"}, r"answers for another revision"),
        ({"X-Repo-Commit": "b" * 40}, r"answers for another revision"),
        ({"Content-Length": str(1 << 40)}, r"model\.json of .* has 1099511627776 bytes; it may have no more than"),
    ],
)
def test_a_hub_that_lies_is_refused(
    spoilt: dict[str, str], message: str, hub: Hub, exported: Path, tmp_path: Path
) -> None:
    name = f"lab/decoder@{hub.take('lab/decoder', contents(exported))}"
    hub.spoilt = spoilt
    with pytest.raises(ValueError, match=message):
        local(name)
    assert not [path for path in tmp_path.rglob("*evil*")]
    hub.spoilt = {}
    assert contents(local(name)) == contents(exported)  # nothing half-fetched was kept


def test_what_the_hub_does_not_have_is_one_line(hub: Hub, exported: Path) -> None:
    with pytest.raises(ValueError, match=r"the hub has no repository lab/nothing that you may read") as error:
        local(f"lab/nothing@{'a' * 40}")
    assert "\n" not in str(error.value)
    files = {name: data for name, data in contents(exported).items() if name != "mask.nii.gz"}
    with pytest.raises(ValueError, match=r"has no such revision, or lacks a file"):
        local(f"lab/decoder@{hub.take('lab/decoder', files)}")


def test_a_training_folder_is_not_pushed_as_it_is(hub: Hub, exported: Path) -> None:
    with pytest.raises(ValueError, match=r"is no exported checkpoint \(without README\.md, mask\.nii\.gz\)"):
        push(exported.parent, "lab/decoder")
    with pytest.raises(ValueError, match=r"a repository is named ORG/NAME, got \.\./x"):
        push(exported, "../x")
    assert hub.repositories == {}


def test_names_of_subjects_and_what_links_lead_to_are_not_pushed(
    hub: Hub, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training folder with notes in a README.md has all four files; a link may lead to a secret."""
    training = Path(shutil.copytree(exported, tmp_path / "training"))
    record = json.loads((training / "model.json").read_text())
    record["training"] = {"units": ["jane"], "reported": ["joe"]}
    (training / "model.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is a training folder, whose record names subjects; use `deeplight export`"):
        push(training, "lab/decoder")
    (training / "scores.csv").write_text("task,target,subject,level,measure,score\n")
    monkeypatch.setattr("sys.argv", ["deeplight", "push", str(training), "lab/decoder"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    (files,) = hub.repositories.pop("lab/decoder").values()
    assert not [name for name, data in files.items() if b"jane" in data]
    linked = Path(shutil.copytree(exported, tmp_path / "linked"))
    (linked / "README.md").unlink()
    (tmp_path / "secret").write_text("secret")
    (linked / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"has links in the place of files \(README\.md\)"):
        push(linked, "lab/decoder")
    cut = Path(shutil.copytree(exported, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        push(cut, "lab/decoder")
    assert hub.repositories == {}
