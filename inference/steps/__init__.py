"""Transitions of a Markov chain."""
