"""Disks that fill up and processes that are killed or work side by side while a store is filled."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alone import FULL_DISK, run_alone
from conftest import (
    Dataset,
    changed,
    contents,
    data_of,
    without_leftovers,
)

from deeplight_core.config import Profile
from deeplight_core.data.manifest import read_manifest, write_manifest, write_notes
from deeplight_core.data.prepare import prepare
from deeplight_core.data.store import Store, open_store


def test_a_folder_that_is_read_only_is_named_and_a_finished_store_there_is_used(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile, own_mounts: tuple[str, ...]
) -> None:
    script = """
        store.mkdir(parents=True)
        for found in ("nothing", "half of it", "all of it"):
            subprocess.run(["mount", "-t", "tmpfs", "none", store], check=True)
            for name, data in reference.items():
                if found == "all of it" or (found == "half of it" and "SOCIAL" in name or name == "store.json"):
                    (store / name).parent.mkdir(exist_ok=True)
                    (store / name).write_bytes(data)
            subprocess.run([*REMOUNT, "remount,ro", store], check=True)
            before = contents(store)
            try:
                prepare(manifest, profile, jobs=1)
                assert found == "all of it", found
                assert is_whole()
            except OSError as error:
                assert found != "all of it", found
                assert error.errno == errno.EROFS, error
                assert "Read-only file system" in str(error), error
                assert str(store) in str(error), error
            assert contents(store) == before
            subprocess.run(["umount", store], check=True)
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path), namespace=own_mounts)


@pytest.mark.parametrize(
    "sizes",
    [[f"size={4 * n}k" for n in range(1, 100)], [f"nr_inodes={n}" for n in range(2, 60)]],
    ids=["bytes", "files"],
)
def test_a_disk_that_is_full_is_named_and_with_more_room_the_store_becomes_whole(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile, own_mounts: tuple[str, ...], sizes: list[str]
) -> None:
    """The disk grows by a page, or file, at a time, so that it is full at every place where anything is written."""
    run_alone(FULL_DISK, project, dataset[0], tiny_profile, contents(store.path), sizes, namespace=own_mounts)


def test_a_run_that_a_full_disk_cuts_short_is_never_taken_for_whole(project: Path, own_mounts: tuple[str, ...]) -> None:
    """A write that does not fit may end early without an error; here each row of the file takes several pages."""
    script = """
        import numpy as np
        from safetensors.numpy import load_file

        from deeplight_core.system.files import write_whole
        from deeplight_core.data.store import write_volumes

        path, values = Path("disk/run.safetensors"), torch.arange(18_000.0).view(3, 6_000)
        path.parent.mkdir()

        def process(write):
            write(slice(0, 6_000), values)
            return {}

        for storage, size in (("float16", 36_000), ("int8", 18_000)):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", path.parent], check=True)
            for n_pages in range(1, 20):
                subprocess.run([*REMOUNT, f"remount,size={4 * n_pages}k", path.parent], check=True)
                try:
                    write_whole(path, lambda p: write_volumes(p, np.arange(3), 6_000, storage, process))
                    break
                except OSError as error:
                    assert "No space left on device" in str(error), error
                    assert not list(path.parent.iterdir())
            assert size < path.stat().st_size < 1.01 * size, (storage, n_pages, path.stat().st_size)
            assert load_file(path)["volumes"].shape == (3, 6_000)
            subprocess.run(["umount", path.parent], check=True)
    """
    run_alone(script, project, None, SimpleNamespace(store=None), None, namespace=own_mounts)


@pytest.mark.parametrize(
    ("call", "storage"), [("pwrite", "float16"), ("pwrite", "int8"), ("preadv", "float16"), ("pread", "int8")]
)
def test_calls_that_move_fewer_bytes_than_asked_lose_nothing(
    project: Path, dataset: Dataset, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch, call: str, storage: str
) -> None:
    """POSIX lets them, e.g. on network file systems; an error will do, too."""
    manifest, profile = dataset[0][:2], changed(tiny_profile, storage=storage)
    expected = data_of(contents(prepare(manifest, profile, jobs=1).path))
    shutil.rmtree(profile.store)
    original = getattr(os, call)

    def short(file: int, what: Any, position: int) -> Any:
        if call == "pread":
            return original(file, what // 2 + 1, position)
        view = memoryview(what[0] if call == "preadv" else what).cast("B")
        view = view[: len(view) // 2 + 1]
        return original(file, [view] if call == "preadv" else view, position)

    monkeypatch.setattr(os, call, short)
    with contextlib.suppress(OSError):
        prepare(manifest, profile, jobs=1)
    found = data_of(contents(profile.store))
    assert found.items() <= expected.items()


def test_two_processes_that_fill_one_store_at_once_make_the_same(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        for _ in range(3):
            both = [start(fill), start(fill)]
            assert [end(child) for child in both] == [0, 0]
            assert is_whole()
            start_anew()
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_two_containers_that_fill_one_store_at_once_make_the_same(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile, own_mounts: tuple[str, ...]
) -> None:
    """Both count their processes from 1."""
    script = """
        me, other = more
        assert os.getpid() == 1
        for n in range(3):
            Path(f"{me}{n}").touch()
            wait_until(Path(f"{other}{n}").exists)
            profile = profile.model_copy(update={"name": f"round{n}"})
            store = profile.store
            fill()
            assert is_whole()
    """
    container = (*own_mounts, "--pid", "--fork", "--kill-child")
    given = project, dataset[0], tiny_profile, contents(store.path)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run_alone, script, *given, *names, namespace=container) for names in ("ab", "ba")]
    for one in both:
        one.result()


def test_one_process_per_subject_all_at_once_make_the_same(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        for _ in range(2):
            subjects = [[subject] for subject in sorted(set(manifest["subject"]))]
            all_of_them = [start(prepare_subjects, manifest, profile, subject, 1) for subject in subjects]
            assert [end(child) for child in all_of_them] == [0] * 6
            assert n_done() == 12
            assert not (store / "index.parquet").exists()
            times = {path: path.stat().st_mtime_ns for path in store.glob("runs/*")}
            fill()
            assert times == {path: path.stat().st_mtime_ns for path in store.glob("runs/*")}  # nothing done twice
            assert is_whole()
            start_anew()
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_a_store_that_is_being_filled_opens_whole_or_not_at_all(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        refusals = set()
        for _ in range(3):
            child, n_opened = start(fill), 0
            while not n_opened:
                try:
                    opened = open_store(store)
                    assert len(opened.index) == 12 * 18
                    assert is_whole()
                    n_opened += 1
                except ValueError as error:
                    refusals.add(str(error).removeprefix(f"store {store} ").split(";")[0])
            assert end(child) == 0
            start_anew()
        assert refusals == {"does not exist", "is not finished"}, refusals
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_a_slow_plan_does_not_take_away_what_a_faster_process_has_finished(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        from deeplight_core.data import plan as planning

        load_volume, index = planning.load_volume, store / "index.parquet"

        def load_late(path):
            wait_until(index.exists)
            return load_volume(path)

        def fill_slowly():
            planning.load_volume = load_late
            fill()

        slow = start(fill_slowly)
        time.sleep(0.1)
        assert end(start(fill)) == 0
        while os.waitid(os.P_PID, slow, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            open_store(store)
        assert end(slow) == 0
        assert is_whole()
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_one_of_two_processes_is_killed_and_the_other_makes_the_store_whole(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        n_killed = 0
        for n_before in (0, 2, 7, 12):
            killed, other = start(fill), start(fill)
            wait_until(lambda: n_done() >= n_before)
            time.sleep(random.uniform(0, 0.02))
            os.kill(killed, signal.SIGKILL)
            n_killed += end(killed) == -signal.SIGKILL
            assert end(other) == 0
            assert is_whole()
            start_anew()
        assert n_killed >= 2, n_killed
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def workers_of(process: int) -> list[int]:
    """The processes of a pool: forks of a child of this process."""

    def children(of: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{of}/task/{of}/children").read_text().split()]

    servers = [c for c in children(process) if b"forkserver" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return [worker for server in servers for worker in children(server)]


def test_a_worker_that_is_killed_is_one_message_and_the_same_command_goes_on(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    write_manifest(dataset[0], project / "mine.csv")
    states = {**tiny_profile.data.source, **tiny_profile.data.target}
    write_notes(project / "mine.csv", str(dataset[1]), "hcp", "subject", states)
    deeplight = Path(sys.executable).with_name("deeplight")
    command = [deeplight, "prepare", "mine.csv", "--store", "store", "--jobs", "2"]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(found := workers_of(process.pid)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(found[0], signal.SIGKILL)  # as Linux does when memory runs out
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 2, shown
    assert shown.startswith("deeplight: "), shown
    assert "Traceback" not in shown
    assert "--jobs" in shown
    with pytest.raises(ValueError, match="is not finished"):
        open_store(project / "store")
    made = prepare(read_manifest(project / "mine.csv"), changed(tiny_profile, store=project / "store"), jobs=1)
    assert data_of(without_leftovers(contents(made.path))) == data_of(contents(store.path))


def test_workers_that_die_while_others_are_still_started_do_not_keep_the_pool_waiting(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os\n\ndef die(_):\n    os._exit(1)\n")
    script = """
        import dying
        from deeplight_core.system.workers import in_processes
        if __name__ == "__main__":
            try:
                in_processes(dying.die, range(32), 32, "deaths")
            except OSError as error:
                assert "--jobs" in str(error), error
    """
    (tmp_path / "main.py").write_text(textwrap.dedent(script))
    process = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        _, shown = process.communicate(timeout=120)
    finally:
        process.kill()  # its workers end with it
    assert process.returncode == 0, shown
