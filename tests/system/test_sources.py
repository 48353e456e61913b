"""Data that lie elsewhere, on a real S3 server on loopback (moto's)."""

import itertools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import Dataset, contents, use_threads
from moto.server import ThreadedMotoServer

from deeplight_core import cli
from deeplight_core.config import Profile
from deeplight_core.data.images import read_header
from deeplight_core.data.prepare import prepare
from deeplight_core.data.scan import scan_hcp
from deeplight_core.data.store import Store, verify
from deeplight_core.system import sources
from deeplight_core.system.sources import at_hand, changed_since, located, refuse_escape, stamps


class Relay:
    """Hands requests without a body on to a server, and breaks the connection within the answers `breaks` chooses."""

    def __init__(self, port: int) -> None:
        self.target, self.breaks, self.sent = port, lambda request: False, []  # type: ignore[var-annotated]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request per connection; the answer ends with the connection."""
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            request = b""
            while b"\r\n\r\n" not in request:
                if not (part := client.recv(1 << 16)):
                    return
                request += part
            head, _, body = request.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            self.sent.append(lines[0].decode())
            breaking, n_sent = self.breaks(lines[0].decode()), 0
            while part := server.recv(1 << 12):
                client.sendall(part)
                n_sent += len(part)
                if breaking and n_sent > 3000:
                    return


@pytest.fixture
def s3(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The dataset in a bucket behind a relay that can break: its URL, the relay, and fsspec's file system."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(sources, "_PAUSE_S", 0.01)
    use_threads(monkeypatch)
    monkeypatch.chdir(tmp_path)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    relay = Relay(port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}")  # not through the relay
    files.mkdir("open")
    files.put(str(dataset[1]), "open/HCP_1200", recursive=True)
    files.invalidate_cache()
    yield SimpleNamespace(url="s3://open/HCP_1200", relay=relay, files=files)
    files.rm("open", recursive=True)  # what the server holds outlives it
    s3fs.S3FileSystem.clear_instance_cache()
    relay.listener.close()
    server.stop()


def with_url(profile: Profile, url: str) -> Profile:
    return profile.model_copy(update={"data": profile.data.model_copy(update={"root": url})})


def test_a_bucket_is_scanned_without_fetching_its_images(s3: SimpleNamespace, dataset: Dataset) -> None:
    s3.relay.sent.clear()
    found, left_out = scan_hcp(located(s3.url))
    here, said = scan_hcp(dataset[1])
    pd.testing.assert_frame_equal(found, here)
    pd.testing.assert_frame_equal(left_out, said)
    assert left_out["reason"].str.startswith("kept, but ").all()  # the headers say a TR of 1 s
    assert read_header(located(s3.url) / found["image"][0]).shape == read_header(dataset[1] / found["image"][0]).shape


def test_a_store_made_from_a_bucket_is_the_one_made_from_the_folder(
    s3: SimpleNamespace, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    made = prepare(dataset[0], with_url(tiny_profile, s3.url), jobs=1)
    volumes = {name: data for name, data in contents(made.path).items() if name.endswith((".safetensors", ".parquet"))}
    assert volumes == {name: data for name, data in contents(store.path).items() if name in volumes}
    assert verify(made.path) == []
    assert [p.name for p in (made.path / "runs").iterdir() if not p.name.startswith("sub-")] == []  # no fetched copies
    s3.relay.sent.clear()
    (made.path / "index.parquet").unlink()
    prepare(dataset[0], with_url(tiny_profile, s3.url), jobs=1)
    assert not [line for line in s3.relay.sent if re.match(r"GET .*\.nii\.gz HTTP", line)]  # found, not fetched


def test_a_download_that_breaks_half_way_is_tried_again(
    s3: SimpleNamespace, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    times = itertools.count()
    s3.relay.breaks = lambda request: request.startswith("GET") and "tfMRI_SOCIAL" in request and next(times) % 2 == 0
    made = prepare(dataset[0], with_url(tiny_profile, s3.url), jobs=1)
    assert next(times) > 12
    pd.testing.assert_frame_equal(made.index, store.index)
    assert made.runs["sha256"].tolist() == store.runs["sha256"].tolist()


def test_a_download_that_never_comes_whole_is_named_and_leaves_nothing(
    s3: SimpleNamespace, dataset: Dataset, tiny_profile: Profile
) -> None:
    s3.relay.breaks = lambda request: "s2/" in request and "tfMRI_SOCIAL_LR.nii.gz" in request and "GET" in request
    profile = with_url(tiny_profile, s3.url)
    with pytest.raises(ValueError, match=r"(?s)s3://open/HCP_1200/s2/.*tfMRI_SOCIAL_LR.nii.gz"):
        prepare(dataset[0], profile, jobs=1, keep_going=True)
    files = contents(profile.store)
    assert not [name for name in files if "sub-s2_task-SOCIAL" in name or "fetched" in name or "partial" in name]
    assert len([name for name in files if name.endswith(".safetensors")]) == 11
    s3.relay.breaks = lambda request: False
    assert len(prepare(dataset[0], profile, jobs=1).runs) == 12


def test_a_file_that_the_bucket_lacks_is_named(s3: SimpleNamespace, dataset: Dataset, tiny_profile: Profile) -> None:
    s3.files.rm(f"open/HCP_1200/{dataset[0]['image'][3]}")
    with pytest.raises(ValueError, match=f"{dataset[0]['image'][3]} does not exist"):
        prepare(dataset[0], with_url(tiny_profile, s3.url), jobs=1)


def test_an_unknown_kind_of_url_is_named() -> None:
    with pytest.raises(ValueError, match="nonsense://x cannot be read"):
        located("nonsense://x")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert located(str(tmp_path)) == tmp_path
    with at_hand(tmp_path, ["not even there"], None) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd"])
def test_names_that_leave_the_root_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves the data root"):
        refuse_escape(tmp_path, name)


def test_links_may_stay_in_the_root_but_not_leave_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "annex").mkdir(parents=True)
    for file in (root / "annex/x", tmp_path / "outside"):
        file.touch()
    (root / "inner").symlink_to(root / "annex/x")
    (root / "outer").symlink_to(tmp_path / "outside")
    refuse_escape(root, "inner")
    with pytest.raises(ValueError, match=r"outer is a link to .*outside, outside the data root"):
        refuse_escape(root, "outer")


def test_a_bucket_that_nobody_may_read_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(sources, "_PAUSE_S", 0.01)
    monkeypatch.setattr(sys, "argv", ["deeplight", "manifest", "--hcp", "s3://open/x", "-o", str(tmp_path / "m.csv")])
    with pytest.raises(SystemExit):
        cli.main()
    assert (
        "deeplight: s3://open/x could not be read in 4 tries (Unable to locate credentials)" in capsys.readouterr().err
    )
    assert not (tmp_path / "m.csv").exists()


def test_a_copy_that_ends_early_without_an_error_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = located("memory://shortened")
    (root / "x").write_bytes(b"0123456789")
    whole, times = root.fs.get_file, itertools.count()

    def cut_at_first(source: str, target: str) -> None:
        whole(source, target)
        if next(times) < 2:
            os.truncate(target, 4)

    monkeypatch.setattr(sources, "_PAUSE_S", 0.01)
    monkeypatch.setattr(type(root.fs), "get_file", lambda fs, source, target: cut_at_first(source, target))
    with at_hand(root, ["x"], tmp_path) as folder:
        assert (folder / "x").read_bytes() == b"0123456789"
    assert next(times) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_file_rewritten_with_the_same_size_and_time_has_another_stamp(tmp_path: Path) -> None:
    (tmp_path / "EVs").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "EVs" / name).write_text("14\t10\t1\n")
    noted = stamps(tmp_path, ["EVs"])
    (tmp_path / "EVs/._a.txt").write_text("a Macintosh's own")
    assert changed_since(noted, stamps(tmp_path, ["EVs"])) == []
    status = (tmp_path / "EVs/a.txt").stat()
    (tmp_path / "EVs/a.txt").write_text("28\t10\t1\n")
    os.utime(tmp_path / "EVs/a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "EVs/b.txt").unlink()
    (tmp_path / "EVs/c.txt").write_text("")
    now = stamps(tmp_path, ["EVs"])
    assert changed_since(noted, now) == ["EVs/a.txt", "EVs/b.txt", "EVs/c.txt"]
    earlier = {file: stamp[:2] for file, stamp in noted.items()}  # as earlier versions noted them
    assert changed_since(earlier, now) == ["EVs/b.txt", "EVs/c.txt"]
