"""Kernels for Pyro's MCMC."""
