"""Training and inference of DeepLight as a user of PyTorch writes them, without tricks.

    python benchmarks/peers/torch_loop.py FOLDER --way plain --batch 24 --steps 30 --warm-up 5 --threads 2

plain    float32, PyTorch's default memory format, a default DataLoader over one `.npy` per volume
obvious  what the performance guides name first: bfloat16 autocast, channels-last, DataLoader workers; on a GPU also
         pinned memory, cuDNN's benchmark mode and a fused optimiser

FOLDER holds `volumes/000000.npy`, … (each float32 (Z, Y, X), zero outside the brain) and `labels.npy` ((N,) int64). A
step is timed from the end of the one before it, so waiting for data is in it; on a GPU the device is waited for at the
beginning and the end of all timed steps only, and their mean is given. Inference has its batch in memory. The last line
of stdout is one JSON object, as `keras_loop.py` prints it. Nothing of this project's package is used.
"""

import argparse
import json
import resource
import time
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

CHANNELS = (16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)
CONV_DROPOUT = (0.0, 0.2, 0.4)  # for each group of four layers
LSTM_UNITS = 64
LEARNING_RATE = 1e-4


class PerVolumeFiles(Dataset):
    """One float32 file per volume."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted((folder / "volumes").glob("*.npy"))
        self.labels = np.load(folder / "labels.npy")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.load(self.files[i])), int(self.labels[i])


class Decoder(nn.Module):
    """DeepLight for slices of (Y, X)."""

    def __init__(self, height: int, width: int, n_states: int) -> None:
        super().__init__()
        pairs = zip(pairwise((1, *CHANNELS)), STRIDES, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(*in_out, 3, stride) for in_out, stride in pairs)
        for stride in STRIDES:
            height, width = -(-height // stride), -(-width // stride)
        self.lstm = nn.LSTM(height * width * CHANNELS[-1], LSTM_UNITS, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * LSTM_UNITS, n_states)
        for weight in self.parameters():
            nn.init.xavier_normal_(weight) if weight.dim() > 1 else nn.init.zeros_(weight)

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, Z, Y, X) → (B, S)."""
        b, z, y, x = volumes.shape
        maps = volumes.reshape(b * z, 1, y, x)
        for i, convolution in enumerate(self.convolutions):
            height, width = maps.shape[2:]
            stride = STRIDES[i]
            down, right = ((-(-n // stride) - 1) * stride + 3 - n for n in (height, width))  # TensorFlow's SAME
            maps = F.pad(maps, (right // 2, right - right // 2, down // 2, down - down // 2))
            maps = F.dropout2d(F.relu(convolution(maps)), CONV_DROPOUT[i // 4], self.training)
        slices = F.dropout(maps.permute(0, 2, 3, 1).reshape(b, z, -1), 0.5, self.training)
        last = self.lstm(slices)[1][0]
        return self.head(F.dropout(torch.cat([last[0], last[1]], dim=1), 0.5, self.training))


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, obvious = torch.device(options.device), options.way == "obvious"
    cuda = device.type == "cuda"
    data = PerVolumeFiles(options.folder)
    workers = {"num_workers": options.workers, "persistent_workers": True, "pin_memory": cuda} if obvious else {}
    loader = DataLoader(data, options.batch, shuffle=True, drop_last=True, **workers)
    model = Decoder(*data[0][0].shape[1:], options.states).to(device)
    if obvious:
        model = model.to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=obvious and cuda)
    losses, ends = [], []
    for step, (volumes, labels) in enumerate(islice(cycle_epochs(loader), options.warm_up + options.steps)):
        with torch.autocast(device.type, torch.bfloat16, enabled=obvious):
            logits = model(volumes.to(device, non_blocking=True))
            loss = F.cross_entropy(logits.float(), labels.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        counted = step - options.warm_up + 1
        if counted in (0, options.steps) or (counted > 0 and not cuda):
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
    per_volume = options.batch * (options.steps if cuda else 1)
    result = {
        "software": {"torch": torch.__version__},
        "n_parameters": sum(weight.numel() for weight in model.parameters()),
        "training_ms_per_volume": [1e3 * (end - start) / per_volume for start, end in pairwise(ends)],
        "inference_ms_per_volume": inference(model.eval(), volumes.to(device), options.steps, obvious),
        "losses": [loss.item() for loss in losses],
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 1e6 if cuda else None,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    print(json.dumps(result), flush=True)


def cycle_epochs(loader: DataLoader) -> object:
    """The batches of one epoch after another, each shuffled anew."""
    for _ in cycle([None]):
        yield from loader


@torch.inference_mode()
def inference(model: nn.Module, volumes: Tensor, repeats: int, autocast: bool) -> list[float]:
    """Milliseconds per volume of forward passes, after two that are not timed."""
    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        with torch.autocast(volumes.device.type, torch.bfloat16, enabled=autocast):
            model(volumes)
        if volumes.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return [1e3 * s / len(volumes) for s in seconds[2:]]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--way", choices=("plain", "obvious"), default="plain")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--steps", type=int, default=30, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="DataLoader workers of the obvious way")
    parser.add_argument("--states", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    main()
