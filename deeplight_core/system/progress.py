"""Progress of long work: plain lines that read the same in a log file and a notebook, and a live bar on terminals."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column

__all__ = ["Bar", "duration", "track"]

T = TypeVar("T")


def duration(seconds: float) -> str:
    """Seconds as `1:05` or `2:03:09`."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def track(items: Iterable[T], total: int, what: str, every_s: float = 5.0) -> Iterator[T]:
    """Yield the items; print `what done/total, time left` every few seconds and at the end."""
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= every_s:
            last = now
            left = (now - start) / done * (total - done)
            tail = f"{duration(left)} left" if done < total else f"took {duration(now - start)}"
            print(f"{what}: {done}/{total}, {tail}", flush=True)


class Bar:
    """A live line for long work, on a terminal only; other output is printed above it.

    Parameters
    ----------
    total : steps in all
    shown : false shows nothing, even on a terminal
    """

    def __init__(self, total: int, what: str, shown: bool = True) -> None:
        console = Console()
        name = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        self._progress = Progress(
            name, TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)), console=console, expand=True,
            transient=True, disable=not (shown and console.is_terminal), auto_refresh=False,
        )  # fmt: skip
        self._task = self._progress.add_task(what, total=total, state="")
        self._progress.start()

    def update(self, done: int, state: str) -> None:
        """Show the number of steps done, and the state of the work."""
        self._progress.update(self._task, completed=done, state=state, refresh=True)

    def close(self) -> None:
        """Remove the line."""
        self._progress.stop()
