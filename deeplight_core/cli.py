"""The `deeplight` command."""

import sys
from collections.abc import Callable

import typer

from deeplight_core.commands.checkpoints import decode, export, import_published, push
from deeplight_core.commands.data import cohort, init, make_manifest, prepare, simulate, verify
from deeplight_core.commands.explaining import explain
from deeplight_core.commands.options import rank
from deeplight_core.commands.pages import book, report
from deeplight_core.commands.trainings import evaluate, finetune, pretrain, sweep

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Transfer learning for whole-brain fMRI: simulate, prepare, pre-train, fine-tune, evaluate.",
)  # fmt: skip
COMMANDS: dict[str, Callable[..., None]] = {
    "simulate": simulate,
    "cohort": cohort,
    "manifest": make_manifest,
    "init": init,
    "prepare": prepare,
    "verify": verify,
    "pretrain": pretrain,
    "finetune": finetune,
    "sweep": sweep,
    "evaluate": evaluate,
    "decode": decode,
    "explain": explain,
    "export": export,
    "push": push,
    "import": import_published,
    "report": report,
    "book": book,
}
for name, command in COMMANDS.items():
    app.command(name=name)(command)


def main() -> None:
    """Run the command; wrong input gives one message and exit status 2."""
    try:
        app()
    except (ValueError, OSError, MemoryError) as error:
        print(f"deeplight{f' (process {rank()})' if rank() else ''}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("deeplight: interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":  # for torchrun -m
    main()
