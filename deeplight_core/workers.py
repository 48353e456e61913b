"""One function over many items in worker processes, with progress lines; no worker outlives the process that asked."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import TypeVar

from deeplight_core.progress import track

__all__ = ["in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(work: Callable[[Item], Result], items: Iterable[Item], jobs: int | None, what: str) -> list[Result]:
    """Results of `work` in the order of the items; the first error stops the rest and is raised.

    Parameters
    ----------
    work : a module-level function, or a `functools.partial` of one
    jobs : worker processes; one per core by default
    what : what progress lines call the items
    """
    with ProcessPoolExecutor(jobs or os.cpu_count(), get_context("spawn"), _stop_with_parent) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in track(as_completed(futures), len(futures), what):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _stop_with_parent() -> None:
    """A killed parent cannot tell its workers to stop: let each watch for its end."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
