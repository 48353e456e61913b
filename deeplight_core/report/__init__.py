"""From tables to figures, sentences and the book.

A figure is a function of a table, and so is each sentence with a number in it, also when it says that no difference
can be shown. Notebooks call these functions; the book is made of the notebooks that have been run.
"""
