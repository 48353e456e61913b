"""Jupyter kernels that start at once, for tests that execute many notebooks.

Most of a small notebook's time goes into its imports, five seconds each time. These kernels are forks of a process that
has imported everything and executed nothing. Jupyter starts this file in the place of a kernel: it asks the server for
a fork, ends when the fork ends, and takes the fork along when it is killed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTED = (
    "ipykernel.kernelapp", "deeplight_core.experiment", "deeplight_core.report.plots",
    "nilearn.plotting", "pandera.pandas", "pingouin", "sklearn.linear_model", "torch.utils.tensorboard",
)  # fmt: skip


@contextmanager
def warm_kernels(folder: Path, repository: Path) -> Iterator[dict[str, str]]:
    """Environment variables that make `python3` such a kernel, with the repository's package."""
    address, said, kernel = folder / "socket", folder / "said", folder / "kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, "-IS", __file__, "ask", str(address), "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    with said.open("w") as stream:
        command = [sys.executable, __file__, "serve", str(address)]
        server = subprocess.Popen(command, cwd=repository, stdout=stream, stderr=stream)
    try:
        while not address.exists():
            assert server.poll() is None, said.read_text()
            time.sleep(0.05)
        assert said.read_text() == ""  # by an import, so that pages would show it
        yield {"JUPYTER_PATH": str(folder)}
    finally:
        server.kill()
        server.wait()


def serve(address: str) -> None:
    """Fork a kernel for each that asks."""
    import importlib
    import threading

    sys.path[0] = ""  # the working directory, as in a kernel
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # which a kernel sets before it imports
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork has none of the other threads"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that have ended are gone
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(16)
        os.rename(f"{address}.new", address)
        while True:
            asked, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                become_kernel(asked)
            asked.close()


def become_kernel(asked: socket.socket) -> None:
    """Take over folder, environment and streams of the process that asks, and be a kernel as long as it lives."""
    import threading

    from ipykernel import kernelapp

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    message, streams, _, _ = socket.recv_fds(asked, 1 << 20, 3)
    given = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(given["folder"])
    os.environ.clear()
    os.environ.update(given["environment"])

    def end_with_it() -> None:
        asked.recv(1)
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
    kernelapp.launch_new_instance(argv=given["arguments"])
    os._exit(0)


def ask(address: str, *arguments: str) -> None:
    """Ask for a kernel, and stay until it ends, or whoever wanted it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # with which Jupyter announces the end
    given = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [json.dumps(given).encode()], [0, 1, 2])
        server.settimeout(1)
        while os.getppid() == parent:
            try:
                server.recv(1)
                return
            except TimeoutError:
                pass


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
