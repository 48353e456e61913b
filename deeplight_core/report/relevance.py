"""Pages of a folder of explanations: one HTML document per state, with pictures, coordinates and a viewer."""

from typing import Any

import pandas as pd

from deeplight_core.analysis.localisation import PLACES
from deeplight_core.report import plots
from deeplight_core.report.html import Part, document

__all__ = ["state_page"]


def state_page(name: str, image: Any, regions: pd.DataFrame, sentences: list[str]) -> str:
    """The page of one state's map as HTML.

    Parameters
    ----------
    image : the group's map as NIfTI, in MNI space
    regions : `x, y, z, value, volume_mm3, near, near_mm` of its largest places
    """
    table = regions.round({"x": 0, "y": 0, "z": 0, "value": 4, "volume_mm3": 0, "near_mm": 0})
    shown = {c: table[c].map("{:g}".format) for c in ("x", "y", "z", "value", "volume_mm3")}
    shown |= {"near": table["near"], "near_mm": table["near_mm"].map("{:g}".format)}
    glass, slices = plots.glass_brains({name: image}), plots.activation_maps({name: image}, label="relevance")
    parts = [
        Part("", sentences),
        Part("Through the skull", figures={"Red speaks for the state, blue against it.": glass}),
        Part("Slices", figures={"Axial slices on the template.": slices}),
        Part("On the cortex", figures={"Projected on fsaverage5.": plots.surface_map(image)}),
        Part("Largest places", ["The map's value at its peaks, and the volume of their clusters in mm³.", PLACES],
             table=pd.DataFrame(shown)),
        Part("Click through it", viewer=plots.interactive_map(image, name).get_standalone()),
    ]  # fmt: skip
    return document(f"Relevance for {name}", parts)
