"""DeepLight as a living paper: transfer learning for whole-brain fMRI, from NIfTI files to statistics.

What is computed is data: tasks and their states, ways to pre-train (routes), decoders to compare (variants), sweeps,
all of it settings of a profile. An experiment goes from a store to a training folder, whose name is a hash of
whatever decides the result. Wings follow the data: `data`, `models`, `training`, `analysis`, `report`, `system`. The
command `deeplight` is a thin face over these functions (`deeplight --help`).
"""

__all__ = ["__version__"]
__version__ = "0.1.0"
