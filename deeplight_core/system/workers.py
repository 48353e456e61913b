"""One function over many items in worker processes, with progress lines; no worker outlives its parent."""

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

from deeplight_core.system.progress import track

__all__ = ["in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int | None, what: str, keep_going: bool = False
) -> list[Result]:
    """Results of `work` in the order of the items; the first error stops the rest and is raised.

    Parameters
    ----------
    work : a module-level function, or a `functools.partial` of one
    jobs : worker processes; by default one per core that this process may use
    what : name of the items in progress lines
    keep_going : do all items that can be done, and raise the errors (ValueError, OSError) of the others as one
    """
    jobs, others = jobs or len(os.sched_getaffinity(0)), {*active_children()}
    context = get_context("forkserver")  # forks of a process that has imported this package
    context.set_forkserver_preload(sorted(name for name in sys.modules if name.startswith("deeplight_core.")))
    with ProcessPoolExecutor(jobs, context, _stop_with_parent) as pool:
        try:
            futures = [pool.submit(work, item) for item in items]
            for future in track(as_completed(futures), len(futures), what):
                if not (keep_going and isinstance(future.exception(), ValueError | OSError)):
                    future.result()
        except BrokenProcessPool:
            for worker in {*active_children()} - others:  # one started while the pool broke would wait for ever
                worker.kill()
            raise ChildProcessError(
                "a worker process was killed, perhaps because memory ran out (fewer --jobs need less); "
                "the same command continues where it stopped"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if errors := [str(error) for future in futures if (error := future.exception())]:
        lines = "\n".join(f"  {error}" for error in errors)
        raise ValueError(f"{len(errors)} of {len(futures)} failed; the others are done:\n{lines}")
    return [future.result() for future in futures]


def _stop_with_parent() -> None:
    """A killed parent cannot stop its workers, so each watches for its end."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
