"""DeepLight as a living paper: transfer learning for whole-brain fMRI, from NIfTI files to statistics."""

__all__ = ["__version__"]
__version__ = "0.1.0"
