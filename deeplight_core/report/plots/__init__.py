"""Tables and maps to figures. Pure functions: no file is read or written here."""

from deeplight_core.report.plots.calibration import reliability_diagram
from deeplight_core.report.plots.comparison import benefit_by_cost, condition_dots, pair_maps, similarity_map
from deeplight_core.report.plots.contrast import recall_dots, way_bars
from deeplight_core.report.plots.data import (
    activation_maps,
    carpet,
    class_counts,
    design_timeline,
    mask_map,
    motion_by_split,
    tsnr_distribution,
    value_map,
)
from deeplight_core.report.plots.decoding import (
    accuracy_by_fraction,
    accuracy_by_network,
    confusion_matrix,
    difference_bars,
    fraction_curves,
    saved_subjects,
    score_by_motion,
    seed_differences,
    task_bars,
    task_curves,
    told_numbers,
    transfer_map,
)
from deeplight_core.report.plots.fairness import gain_lines, rate_lines, step_curves
from deeplight_core.report.plots.groups import group_values
from deeplight_core.report.plots.images import shown_slices
from deeplight_core.report.plots.model import model_diagram
from deeplight_core.report.plots.relevance import glass_brains, interactive_map, localisation_bars, surface_map
from deeplight_core.report.plots.speed import hours_bars, hours_by_gpus, loading_bars, loss_curves, step_bars
from deeplight_core.report.plots.structural import (
    code_histograms,
    code_projections,
    error_bars,
    error_curves,
    fault_curves,
    reconstruction_grid,
)
from deeplight_core.report.plots.style import TASK_COLOURS, use_style

__all__ = [
    "TASK_COLOURS",
    "accuracy_by_fraction",
    "accuracy_by_network",
    "activation_maps",
    "benefit_by_cost",
    "carpet",
    "class_counts",
    "code_histograms",
    "code_projections",
    "condition_dots",
    "confusion_matrix",
    "design_timeline",
    "difference_bars",
    "error_bars",
    "error_curves",
    "fault_curves",
    "fraction_curves",
    "gain_lines",
    "glass_brains",
    "group_values",
    "hours_bars",
    "hours_by_gpus",
    "interactive_map",
    "loading_bars",
    "localisation_bars",
    "loss_curves",
    "mask_map",
    "model_diagram",
    "motion_by_split",
    "pair_maps",
    "rate_lines",
    "recall_dots",
    "reconstruction_grid",
    "reliability_diagram",
    "saved_subjects",
    "score_by_motion",
    "seed_differences",
    "shown_slices",
    "similarity_map",
    "step_bars",
    "step_curves",
    "surface_map",
    "task_bars",
    "task_curves",
    "told_numbers",
    "transfer_map",
    "tsnr_distribution",
    "use_style",
    "value_map",
    "way_bars",
]
