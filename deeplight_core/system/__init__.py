"""Files, sources, worker processes, progress: nothing about brains.

A file appears whole or not at all, so that whatever is interrupted continues where it stopped. Paths may be on a disk
or on S3.
"""
