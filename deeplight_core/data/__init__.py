"""From a manifest to a volume store.

A manifest lists runs and structural images, one row each, with the split that they belong to: by subject and family,
and fixed before anything is learnt. Its images and events are read, cleaned voxel by voxel and labelled, and end in a
volume store: one file per run with the voxels of the mask, and one index of all volumes. Simulated datasets are
folders like real ones; nothing after them knows the difference. Several problems are reported together, each with its
row.
"""
