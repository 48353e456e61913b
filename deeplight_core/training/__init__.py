"""From a store to a trained model and what it answers.

Examples say what is learnt from: volumes, clips or windows, each with its target. A batch is a function of seed and
step alone, so a training that was killed goes on as if it had not been, and any number of processes learns the same.
The loop knows a model's loss and nothing else. Linear models learn from the same volumes. What is trained becomes a
checkpoint, which says on which grid and after which preprocessing it may be used, and is read without unpickling.
"""
