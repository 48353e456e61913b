"""From answers to tables of scores and their statistics.

One tidy table has a row per subject, decoder, size and seed; all statistics read this table and nothing else.
Subjects are the unit. The paper's paired t-tests stand beside Holm's correction, effect sizes, permutations, Bayes
factors and mixed models in which seeds vary, too. Attribution asks where in the brain an answer comes from, and is
held against what was planted.
"""
