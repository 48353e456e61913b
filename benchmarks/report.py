"""What all benchmarks have in common: the name of what they ran on, and their result as one JSON file."""

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["device_name", "write_result"]


def device_name(device: torch.device) -> str:
    """The model of the GPU or the processor, without clock rates and trademarks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return " ".join(re.sub(r"\((R|TM)\)|@.*|\bCPU\b", " ", name).split()) or platform.machine()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2]
    return platform.processor()


def write_result(
    benchmark: str, device: str, load: tuple[float, ...], packages: Sequence[str], output: Path, **measured: object
) -> None:
    """Write `<benchmark>-<device>.json` and print it.

    Parameters
    ----------
    load : the load average before anything was measured
    packages : whose versions matter
    """
    name = device_name(torch.device(device))
    result = {
        "device": name,
        "kind": device,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "software": {package: version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
        "load_average": [round(value, 2) for value in load],
        **measured,
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{benchmark}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"), end="")
    print(f"written to {path}")
