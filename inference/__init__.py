"""Samplers: pure steps, noise ladders, the annealed driver, and kernels for Pyro's MCMC."""
