"""Files, sources, worker processes, progress: nothing about brains."""
