"""A search for the modes of the annealed posterior, then a chain of draws in each."""
