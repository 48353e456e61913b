"""Scripts of tests in processes of their own, with what they have in common."""

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

PREAMBLE = """
    import errno
    import os
    import pickle
    import random
    import shutil
    import signal
    import subprocess
    import sys
    import time
    import traceback
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import nilearn.signal
    import torch
    from conftest import contents, without_leftovers

    from deeplight_core.system import workers
    from deeplight_core.data.prepare import prepare, prepare_subjects
    from deeplight_core.data.store import open_store, verify

    REMOUNT = ["mount", "--options-mode", "ignore", "-o"]  # the old options name users that a namespace may not have
    manifest, profile, reference, *more = pickle.loads(sys.stdin.buffer.read())
    workers.ProcessPoolExecutor = lambda jobs, *_: ThreadPoolExecutor(jobs)
    store = profile.store

    def is_whole():
        return without_leftovers(contents(store)) == reference and verify(store) == []

    def start(job, *arguments):
        \"\"\"Do a job in a fork of this process.\"\"\"
        if (child := os.fork()) == 0:
            status = 1
            try:
                job(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return child

    def end(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def fill():
        prepare(manifest, profile, jobs=1)

    def n_done():
        return len(list(store.glob("runs/sub-*.json")))

    def wait_until(true):
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def start_anew():
        shutil.rmtree(store)
"""


FULL_DISK = """
    (sizes,) = more
    store.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", sizes[0], "none", store], check=True)
    for n_full, size in enumerate(sizes):
        subprocess.run([*REMOUNT, f"remount,{size}", store], check=True)
        try:
            fill()
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            assert "No space left on device" in str(error), error
            assert str(store) in str(error), error
        left = contents(store)
        assert all(data == reference[name] for name, data in left.items()), set(left)  # whole, nothing partial
        try:
            open_store(store)
            raise AssertionError("an unfinished store was opened")
        except ValueError as error:
            assert "is not finished" in str(error)
    assert is_whole(), (size, verify(store))
    assert n_full > 20, n_full
"""


def run_alone(script: str, folder: Path, *given: object, namespace: tuple[str, ...] = ()) -> None:
    """Run a script in a process that has started no threads, and fail with what it prints if it fails."""
    here = Path(__file__).parent
    done = subprocess.run(
        [*namespace, sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(script)],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [here, here / "training", here.parent]))},
        input=pickle.dumps(given), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()
