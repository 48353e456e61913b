"""From a store to a trained model and what it answers."""
