import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from deeplight_core.system.workers import in_processes


def power(base: int, exponent: int) -> int:
    if base < 0:
        raise ValueError(f"{base} is negative")
    return base**exponent


def test_results_come_in_the_order_of_the_items(capsys):
    assert in_processes(partial(power, exponent=2), [3, 1, 2], 2, "numbers") == [9, 1, 4]
    assert "numbers: 3/3" in capsys.readouterr().out


def test_the_first_error_is_raised():
    with pytest.raises(ValueError, match="-1 is negative"):
        in_processes(partial(power, exponent=2), [1, -1, 2], 1, "numbers")


def test_keeping_going_does_the_others_and_names_all_that_failed(tmp_path):
    with pytest.raises(
        ValueError, match=r"(?s)2 of 4 failed; the others are done:\n  -1 is negative\n  -2 is negative"
    ):
        in_processes(partial(noted, folder=tmp_path), [3, -1, -2, 5], 2, "numbers", keep_going=True)
    assert {p.name for p in tmp_path.iterdir()} == {"3", "5"}


def test_a_mistake_of_ours_is_not_kept_for_later():
    with pytest.raises(TypeError):
        in_processes(partial(power, exponent="2"), [1, 2], 1, "numbers", keep_going=True)


def noted(base, folder):
    (folder / str(power(base, 2) and base)).touch()


def test_workers_end_with_a_killed_parent(tmp_path):
    """The worker says who it is and would sleep for five minutes."""
    module = tmp_path / "sleeper.py"
    module.write_text(
        "import os, pathlib, time\n"
        "def work(path):\n    pathlib.Path(path).write_text(str(os.getpid()))\n    time.sleep(300)\n"
        "if __name__ == '__main__':\n"
        "    from sleeper import work\n    from deeplight_core.system.workers import in_processes\n"
        "    in_processes(work, ['pid'], 1, 'sleeps')\n"
    )
    parent = subprocess.Popen([sys.executable, str(module)], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while _alive(worker):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat", encoding="utf-8") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
