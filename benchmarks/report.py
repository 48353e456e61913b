"""Common to all benchmarks: the device's name, the result as one JSON file, checked options."""

import argparse
import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from deeplight_core.system.files import write_whole

__all__ = ["Result", "check", "device_name"]


def device_name(device: torch.device) -> str:
    """The model of the GPU or the CPU, without clock rates and trademarks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return " ".join(re.sub(r"\((R|TM)\)|@.*|\bCPU\b", " ", name).split()) or platform.machine()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2]
    return platform.processor()


class Result:
    """The JSON file of a benchmark, `<benchmark>-<device>.json`, written measurement by measurement.

    Until `finish` its name ends in `.partial`: measurements before a failure or an interruption stay there, and an
    earlier result is left alone.

    Parameters
    ----------
    packages : whose versions matter
    output : its folder; if it cannot be written, this fails before anything is measured
    asked : the options
    """

    def __init__(self, benchmark: str, device: str, packages: Sequence[str], output: Path, **asked: object) -> None:
        name = device_name(torch.device(device))
        self.path = output / f"{benchmark}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.content: dict[str, object] = {
            "device": name,
            "kind": device,
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "software": {package: version(package) for package in packages},
            "date": datetime.now(UTC).date().isoformat(),
            "load_average": [round(value, 2) for value in os.getloadavg()],
        }
        self.add(**asked)

    def add(self, **measured: object) -> None:
        """Write the measurements so far."""
        self.content |= measured
        text = json.dumps(self.content, indent=2) + "\n"
        write_whole(self.partial, lambda path: path.write_text(text, encoding="utf-8"))

    def finish(self, **measured: object) -> None:
        """Add the last measurements, give the file its name, and print it."""
        self.add(**measured)
        self.partial.replace(self.path)
        print(self.path.read_text(encoding="utf-8"), end="")
        print(f"written to {self.path}")


def check(
    parser: argparse.ArgumentParser, options: argparse.Namespace, least: dict[str, int], wrong: dict[str, bool]
) -> None:
    """Exit with one message about all wrong options, before any measurement.

    Parameters
    ----------
    least : the smallest value of options that are a number, or several
    wrong : other problems, and whether each occurs
    """
    found = [problem for problem, is_so in wrong.items() if is_so]
    for name, smallest in least.items():
        given = getattr(options, name)
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is not None and value < smallest:
                found.append(f"--{name.replace('_', '-')} must be {smallest} or more, got {value}")
    if getattr(options, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        found.append("PyTorch finds no CUDA device here")
    if found:
        parser.error("; ".join(found))
