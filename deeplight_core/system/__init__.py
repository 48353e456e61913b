"""Files, sources, worker processes, progress: what knows nothing of brains."""
