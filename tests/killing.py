"""Kill a job at random moments until it is done, for tests of what an interruption leaves behind."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path


def kill_until_done(job: Callable[[], object], times: int, within_s: float) -> None:
    """Run a job in forks of this process; kill the first ones within so many seconds, then let one come to its end."""
    for attempt in range(times + 1):
        if (child := os.fork()) == 0:
            job()
            os._exit(0)
        if attempt < times:
            time.sleep(random.uniform(0, within_s))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"attempt {attempt}: {status}", flush=True)
    if status != 0:
        raise SystemExit(f"the last attempt ended with {status}")


def run_script(script: str, folder: Path) -> None:
    """Run a Python script in a folder, in a process of its own that may be forked: it has started no threads."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120)
