"""Batch normalisation against torch's, on one process and on several that share a batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.noise import part_of_batch

SIZES = {2: [2, 0, 0], 7: [2, 2, 3]}  # batch → examples of each of three processes; some may have none


def batch(n: int) -> Tensor:
    return 3 + 2 * torch.randn(n, 4, 3, 5, 2, generator=torch.Generator().manual_seed(n))


def layer(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = kind(4, momentum=0.3)
    with torch.no_grad():
        made.weight.uniform_(0.5, 2)
        made.bias.normal_()
    return made


def taught(norm: nn.Module, maps: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Results, gradients and averages of a step of some loss that couples all examples."""
    maps = maps.clone().requires_grad_()
    result = norm(maps)
    (result.pow(3) * weights).sum().backward()
    gradients = {"maps": maps.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"result": result.detach(), **gradients, **{k: v for k, v in norm.state_dict().items() if "running" in k}}


def loss_weights(n: int) -> Tensor:
    return torch.randn(n, 4, 3, 5, 2, generator=torch.Generator().manual_seed(100 + n))


@pytest.mark.parametrize("n", SIZES)
def test_one_process_computes_as_torch_does(n: int) -> None:
    own, theirs = (taught(layer(kind).train(), batch(n), loss_weights(n)) for kind in (BatchNorm, nn.BatchNorm3d))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())
    one, other = (layer(kind).eval()(batch(n)) for kind in (BatchNorm, nn.BatchNorm3d))
    assert torch.equal(one, other)


def test_takes_any_number_of_places() -> None:
    for shape in ((6, 4), (6, 4, 9), (6, 4, 2, 3)):
        assert layer(BatchNorm).train()(torch.randn(*shape)).shape == shape
    with pytest.raises(ValueError, match=r"needs \(B, C, …\), got \(4,\)"):
        layer(BatchNorm)(torch.randn(4))


def test_processes_that_share_a_batch_normalise_it_as_a_whole(tmp_path: Path) -> None:
    """Statistics, results, gradients and averages; also where a process has one example that counts as nothing."""
    root = Path(__file__).parents[2]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*torchrun, __file__, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for n, sizes in SIZES.items():
        expected = taught(layer(nn.BatchNorm3d).train(), batch(n), loss_weights(n))
        parts = [load_file(tmp_path / f"{n}-{rank}.safetensors") for rank in range(3)]
        for name in ("result", "maps"):
            together = torch.cat([part[name][:size] for part, size in zip(parts, sizes, strict=True)])
            torch.testing.assert_close(together, expected[name], rtol=1e-4, atol=1e-4)  # float32, in another order
        for name in ("weight", "bias"):
            torch.testing.assert_close(sum(part[name] for part in parts), expected[name], rtol=1e-4, atol=1e-3)
        for part in parts:
            for name in ("running_mean", "running_var"):
                torch.testing.assert_close(part[name], expected[name], rtol=1e-5, atol=1e-6)


if __name__ == "__main__":  # one of the processes
    dist.init_process_group("gloo")
    for n, sizes in SIZES.items():
        rank = dist.get_rank()
        first, size = sum(sizes[:rank]), sizes[rank]
        mine = slice(first, first + size) if size else slice(0, 1)
        weights = loss_weights(n)[mine] * (size > 0)  # what counts as nothing has no loss
        with part_of_batch(first, size, n):
            found = taught(layer(BatchNorm).train(), batch(n)[mine], weights)
        save_file({k: v.contiguous() for k, v in found.items()}, Path(sys.argv[1]) / f"{n}-{rank}.safetensors")
    dist.destroy_process_group()
