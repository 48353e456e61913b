"""From tables to figures, sentences and the book."""
