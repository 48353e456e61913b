"""The command that explains a decoder."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from deeplight_core.commands.options import DataRoot, Jobs, manifests_profile, with_data

__all__ = ["explain"]


def explain(
    checkpoint: Annotated[str, typer.Argument(help="A training folder, an exported one, or ORG/NAME@REVISION.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Profile, folder of a prepared store, CSV of `deeplight manifest`, or a run (NIfTI).", metavar="SOURCE"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for maps, tables and pages.")],
    method: Annotated[
        str, typer.Option(help="lrp-epsilon, lrp-alpha2beta1, lrp-gamma, gradient or integrated-gradients.")
    ] = "lrp-epsilon",
    first: Annotated[str, typer.Option(help="LRP in the first convolution: same, flat or wsquare.")] = "same",
    split: Annotated[
        str, typer.Option(help="train, validation, test or all (default: the reported one; of a CSV, all).")
    ] = "",
    predicted: Annotated[
        bool,
        typer.Option("--predicted", help="Explain what the decoder answers, right or wrong: events are not needed."),
    ] = False,
    each: Annotated[
        int | None, typer.Option(help="At most so many volumes of every subject's states (default: all).", min=1)
    ] = None,
    double: Annotated[bool, typer.Option("--double", help="Double precision: conservation to rounding.")] = False,
    pages: Annotated[bool, typer.Option(help="Write an HTML page for every state; maps must be in MNI space.")] = True,
    device: Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")] = "cpu",
    data: DataRoot = None,
    jobs: Jobs = None,
) -> None:
    """Where in the brain do a decoder's decisions come from? Relevance maps per state, subject and group.

    Example: `deeplight explain runs/demo/finetuning-pretrained-1-seed1-… demo -o relevance`

    With another method: `… --method lrp-alpha2beta1 --first flat`

    A run without events: `deeplight explain mydecoder sub-01_task-rest_bold.nii.gz --predicted -o relevance`
    """
    from deeplight_core import decoding, explanations
    from deeplight_core.analysis.attribution import METHODS
    from deeplight_core.report.plots import use_style
    from deeplight_core.report.relevance import state_page
    from deeplight_core.system.files import write_whole

    if method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    if first not in ("same", "flat", "wsquare"):
        raise ValueError(f"--first must be same, flat or wsquare, got {first!r}")
    if first != "same" and not method.startswith("lrp"):
        raise ValueError(f"--first is for LRP, and --method is {method}; leave it out")
    if data and not source.endswith(".csv"):
        raise ValueError(f"--data is for a CSV of `deeplight manifest`; {source} knows where its data are")
    with ExitStack() as stack:
        if source.endswith((".csv", ".nii", ".nii.gz")):
            profile = None
            if source.endswith(".csv"):
                own = with_data(manifests_profile(Path(source)), data)
            else:
                own = stack.enter_context(decoding.profile_of_image(Path(source)))
            store, split = stack.enter_context(decoding.prepared(checkpoint, own, jobs)), split or "all"
        else:
            store, profile = explanations.source_of(source)
        question = explanations.asked(checkpoint, store, split, each, device, predicted)
        found = explanations.explained(question, METHODS[method].model_copy(update={"first": first}), double)
        explanations.write(found, output, profile)
    sentences = explanations.sentences(found)
    if pages:
        use_style()
        for name, image, places in explanations.maps_of(found):
            text = state_page(name, image, places, sentences).encode()
            write_whole(output / f"{explanations.file_name(name)}.html", partial(Path.write_bytes, data=text))
    print("\n".join([str(output), *sentences]))
