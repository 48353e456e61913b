"""One of the processes of a training, for tests that need several: `python ranks.py STORE SETTINGS FOLDER`.

SETTINGS is JSON: `devices`, fields of TrainingSettings, and maybe `kill`: [rank, after so many batches], or `apart`:
each process has a folder of its own. The first process writes FOLDER/weights.safetensors.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import test_loop
import torch
from safetensors.torch import save_file

from deeplight_core.cli import main
from deeplight_core.data.store import open_store
from deeplight_core.models import Batch
from deeplight_core.routes import TrainingSettings
from deeplight_core.training.loader import Volumes

RANK = int(os.environ.get("LOCAL_RANK", "0"))


def train(store: str, settings: str, folder: str) -> None:
    options = json.loads(settings)
    rank, left = options.pop("kill", (-1, 0))
    devices, steps = options.pop("devices"), options.pop("steps", np.inf)
    if options.pop("apart", False):  # as on nodes that share no disk
        folder = f"{folder}/{RANK}"
    if rank == RANK:

        def batches(self: Volumes, order: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
            for n, item in enumerate(whole(self, order)):
                if n == left:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield item

        whole, Volumes.batches = Volumes.batches, batches
    loop = TrainingSettings.model_validate({**test_loop.SETTINGS.model_dump(), **options})
    _, predicted, weights = test_loop.train(
        open_store(store), Path(folder), loop, every_s=0, devices=devices, steps=steps
    )
    if RANK == 0:
        tensors = {name: weight.contiguous() for name, weight in weights.items()}
        save_file({"predicted": torch.tensor(predicted), **tensors}, Path(folder) / "weights.safetensors")


if __name__ == "__main__":
    import typer

    import deeplight_core.cli

    deeplight_core.cli.app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    deeplight_core.cli.app.command()(train)
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    main()
