"""Kill a job again and again until it is done, for tests of what an interruption leaves behind."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path


def kill_until_done(job: Callable[[], object], watched: str) -> None:
    """Run a job in forks of this process; kill each soon after it has written one more file, until one reaches its end.

    Parameters
    ----------
    watched : glob pattern of the files that show that the job has come further
    """
    n_killed, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        before = _times(watched)
        if (child := os.fork()) == 0:
            job()
            os._exit(0)
        ended = None
        while ended is None and _times(watched) == before:
            time.sleep(0.001)
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        time.sleep(random.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)  # to no effect if it has ended
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        n_killed += status == -signal.SIGKILL
    if status != 0 or n_killed < 2:
        raise SystemExit(f"the job ended with {status}, killed {n_killed} times before")


def _times(pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path().glob(pattern)}


def run_script(script: str, folder: Path) -> None:
    """Run a Python script in a folder, in a process of its own that may be forked: it has started no threads."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here}:{here / 'training'}"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120)
