"""How far long work is, as plain lines that read the same in a terminal, a log file and a notebook."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["duration", "track"]

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
