"""From answers to tables of scores and their statistics."""
